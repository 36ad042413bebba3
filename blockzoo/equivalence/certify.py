"""Certifying swaps: run them, measure them, grade them, write it down.

Weights screen and activations rank (`explore.compare`); only what is done here decides. A
chain with several swaps is certified as a whole, since losses add up in ways that single ones do
not tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from blockzoo.equivalence import texts
from blockzoo.equivalence.evidence import Evidence, evaluate
from blockzoo.equivalence.grade import Judgement, judge, judge_again
from blockzoo.equivalence.listing import missing
from blockzoo.equivalence.losses import Variant, measure
from blockzoo.equivalence.precision import RoundTrip
from blockzoo.equivalence.record import Equivalence
from blockzoo.equivalence.stand_in import certify_whole
from blockzoo.equivalence.statistics import resamples_for
from blockzoo.equivalence.swap import Swap, find_swaps, swapped
from blockzoo.errors import BlockzooError, NotFoundError, UsageError
from blockzoo.execution.passage import piece_length
from blockzoo.execution.tensors import StreamedTensors
from blockzoo.execution.texts import Text, read_text, read_texts
from blockzoo.progress import Progress, silent
from blockzoo.records import Model
from blockzoo.store.session import Session

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

#: tokens of each text that are measured
TOKENS = 20_000

Paths = str | Path | Sequence[str | Path]


def certify(
    zoo: Zoo,
    name: str,
    candidates: Sequence[str | Iterable[str] | Sequence[Swap]],
    text: Paths,
    *,
    own: str | Path | None = None,
    calibration: Paths = (),
    each: bool = False,
    tokens: int = TOKENS,
    keep: bool = True,
    progress: Progress = silent,
) -> list[Equivalence]:
    """Certify candidates, each a swap or several together, in one model on the same texts.

    Parameters
    ----------
    zoo : Zoo
    name : str
        The receiving model.
    candidates : sequence of str, of iterable of str or of sequence of Swap
        See `swap.find_swaps`. Several are several tries, and corrected for as such (Holm).
    text : path or sequence of paths
        Files of held-out text, each a domain.
    own : path, optional
        A file of the tenant's own domain: one of `text`, or a further one.
    calibration : path or sequence of paths
        What the candidates were chosen on. Documents that are in it are not measured.
    each : bool
        Make every swap that a candidate has a candidate by itself.
    tokens : int
        Of each text at most.
    keep : bool
        Whether the records are kept in the zoo, whatever the verdict.
    progress : Progress
        Told tokens.

    Returns
    -------
    list of Equivalence

    Raises
    ------
    SourceError
        Where a text cannot be used.
    UsageError, NotFoundError, BlockzooError
        Where a block cannot be swapped.
    UnservableError
        Where the model cannot be run.
    """
    model = zoo.model(name)
    swaps = [_swaps(zoo, model, candidate) for candidate in candidates]
    if each:
        swaps = [(swap,) for some in swaps for swap in some]
    if not swaps:
        raise UsageError("no block is to be swapped", hint="give --swap HOP=OTHER")
    files = paths_of(text)
    if own is not None and not any(Path(own).resolve() == Path(f).resolve() for f in files):
        files.append(own)
    chosen_on = [read_text(path) for path in paths_of(calibration)]
    samples = texts.take_samples(read_texts(files), chosen_on, zoo.tokenizer(model), tokens)
    resamples = resamples_for(len(swaps))
    settings = {
        "tokens": tokens,
        "length": piece_length(zoo.chain(model)),
        "resamples": resamples,
        "dtype": "float32",
    }
    own_domain = read_text(own).domain if own is not None else ""
    trial = _Trial(zoo, model, samples, chosen_on, own_domain, settings)
    floor, int8, evidence = trial.run(swaps, progress)
    judged = judge(evidence, floor)
    records = [
        trial.record(some, judgement, found, floor, int8, len(swaps))
        for some, judgement, found in zip(swaps, judged, evidence, strict=True)
    ]
    if keep:
        keep_records(zoo, records)
    return records


def _swaps(
    zoo: Zoo, model: Model, candidate: str | Iterable[str] | Sequence[Swap]
) -> tuple[Swap, ...]:
    if isinstance(candidate, str):
        return find_swaps(zoo, model, candidate)
    given = list(candidate)
    swaps = tuple(swap for swap in given if isinstance(swap, Swap))
    return swaps or find_swaps(zoo, model, [text for text in given if isinstance(text, str)])


def certify_again(
    zoo: Zoo, record: Equivalence, text: Paths = (), progress: Progress = silent
) -> Equivalence:
    """Repeat a certification on the same texts; the new record is kept, too.

    Parameters
    ----------
    zoo : Zoo
    record : Equivalence
    text : path or sequence of paths
        Where its texts are, if they are no longer where they were.
    progress : Progress

    Raises
    ------
    NotFoundError
        Where the model or a block of that record is gone.
    SourceError
        Where a text of that record is gone or was changed.
    """
    _check_there(zoo, record)
    offered = [read_text(path) for path in paths_of(text)]
    layout = zoo.objects.layout
    found = [texts.recall(layout, entry, offered) for entry in record.texts]
    chosen_on = [texts.recall(layout, entry, offered) for entry in record.calibration]
    model = zoo.objects.model(record.model)
    most = record.settings["tokens"]
    samples = texts.take_samples(found, chosen_on, zoo.tokenizer(model), most)
    if record.stand_in:
        other = zoo.objects.model(record.stand_in)
        return certify_whole(zoo, model, other, samples, chosen_on, most, progress)
    trial = _Trial(zoo, model, samples, chosen_on, record.own, record.settings)
    floor, int8, (evidence,) = trial.run([record.swaps], progress)
    judgement = judge_again(evidence, floor, record.judgement, record.candidates)
    again = trial.record(record.swaps, judgement, evidence, floor, int8, record.candidates)
    keep_records(zoo, [again])
    return again


def _check_there(zoo: Zoo, record: Equivalence) -> None:
    if gone := missing(zoo, record):
        raise NotFoundError(
            f"the record {record.digest[:12]} speaks of what is no longer here: {', '.join(gone)}",
            hint="ingest the models again, then certify anew",
        )


@dataclass(frozen=True)
class _Trial:
    """One model on some texts, and what of it goes into every record."""

    zoo: Zoo
    model: Model
    samples: Sequence[texts.Sample]
    chosen_on: Sequence[Text]
    own: str
    settings: Mapping[str, Any]

    def run(
        self, candidates: Sequence[Sequence[Swap]], progress: Progress
    ) -> tuple[Evidence, Evidence, list[Evidence]]:
        """The evidence of bfloat16, of int8 and of each candidate."""
        found = [sample.text for sample in self.samples]
        texts.remember(self.zoo.objects.layout, [*found, *self.chosen_on])
        zoo, model = self.zoo, self.model
        variants = [
            Variant(zoo.chain(model, StreamedTensors(zoo.tensor, torch.bfloat16))),
            Variant(zoo.chain(model, RoundTrip(StreamedTensors(zoo.tensor)))),
        ]
        names = [hop.name for hop in model.chain]
        for swaps in candidates:
            # what stands before the first swap need not be run again
            first = names.index(swaps[0].hop)
            variants.append(Variant.changed_from(first, zoo.chain(swapped(model, swaps))))
        documents = [ids for sample in self.samples for ids in sample.documents]
        domains = [sample.text.domain for sample in self.samples for _ in sample.documents]
        floor, int8, *evidence = [
            evaluate(losses, domains, resamples=self.settings["resamples"])
            for losses in measure(zoo.chain(model), variants, documents, progress)
        ]
        return floor, int8, evidence

    def record(
        self,
        swaps: tuple[Swap, ...],
        judgement: Judgement,
        evidence: Evidence,
        floor: Evidence,
        int8: Evidence,
        candidates: int,
    ) -> Equivalence:
        return Equivalence(
            self.model.digest,
            swaps,
            judgement,
            evidence,
            floor,
            int8,
            tuple(sample.to_json() for sample in self.samples),
            tuple({"domain": text.domain, "digest": text.digest} for text in self.chosen_on),
            self.own,
            candidates,
            self.settings,
        )


def keep_records(zoo: Zoo, records: Sequence[Equivalence]) -> None:
    """Write records to the zoo."""
    with Session(zoo.objects) as session:
        for record in records:
            session.equivalence(record.digest, record.encoded)
        if not session.commit():
            raise BlockzooError("the records were collected while they were written")


def paths_of(paths: Paths) -> list[str | Path]:
    """One path or several, as a list."""
    return [paths] if isinstance(paths, (str, Path)) else list(paths)
