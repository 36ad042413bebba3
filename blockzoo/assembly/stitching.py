"""Stitching: the first layers of one model, a stitch, the last layers of another.

The stitch is fitted here, or taken from a model that was stitched before; the chain becomes a
model of its own under a name. What it is worth is measured on text that it was not fitted on:
its perplexity beside that of both models and of three controls, and what it costs as a stand-in
for the second.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from blockzoo.assembly.joint import Joint, find_joint
from blockzoo.assembly.source import Source, vocabulary
from blockzoo.assembly.stitched import Stitched
from blockzoo.equivalence.certify import TOKENS, Paths, paths_of
from blockzoo.equivalence.perplexity import Surprise, surprise
from blockzoo.equivalence.stand_in import certify_whole
from blockzoo.equivalence.stitch_controls import (
    CONTROLS,
    Beside,
    Control,
    StitchBlock,
    data_of,
    drawn,
    randomised,
)
from blockzoo.equivalence.stitch_fit import Pair, Position, Settings, fit, pieces
from blockzoo.equivalence.texts import Sample, take_samples
from blockzoo.errors import BlockzooError, NotFoundError, SourceError, UsageError
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.passage import piece_length
from blockzoo.execution.stitch import KIND, Stitch
from blockzoo.execution.tensors import StreamedTensors
from blockzoo.execution.texts import read_texts
from blockzoo.partition import why_not_served
from blockzoo.progress import Progress, silent
from blockzoo.records import Hop
from blockzoo.store.refs import LATEST, split_name, tagged
from blockzoo.store.session import NameLock, Session

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


def stitch(
    zoo: Zoo,
    source: str,
    target: str,
    name: str,
    *,
    calibration: Paths = (),
    text: Paths = (),
    also: Sequence[Position] = (),
    using: str | None = None,
    settings: Settings | None = None,
    controls: bool = True,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> Stitched:
    """Stitch two models, keep the result, and measure what comes of it.

    Parameters
    ----------
    zoo : Zoo
    source, target : str
        ``NAME@LAYER``: so many first layers of one model, its embedding before them; the other
        from that layer on, with its head.
    name : str
        ``name`` or ``name:tag`` of what is made.
    calibration : path or sequence of paths
        Text to fit on: at least ten tokens for each dimension of the wider model.
    text : path or sequence of paths
        Held-out text to measure on, each file a domain. None: nothing is measured.
    also : sequence of (int, int)
        Further positions that the stitch is fitted for.
    using : str, optional
        A stitched model whose stitch is taken; nothing is fitted then.
    settings : Settings, optional
        How it is fitted.
    controls : bool
        Whether the three controls are fitted, too, and measured.
    tokens : int
        Of each held-out text at most.
    progress : Progress
        Told tokens and steps.

    Raises
    ------
    SourceError
        Where a text cannot be used, or there is too little to fit on.
    UsageError, NotFoundError
        Where there is no such model, layer or stitch.
    BlockzooError, UnservableError
        Where the two cannot be stitched, or not there.
    """
    (first, after), (last, before) = place(source), place(target)
    at = (after, before)
    split_name(name)  # a bad one is told before anything is fitted
    joint = find_joint(zoo, first, last)
    positions = tuple(dict.fromkeys([at, *also]))
    for position in positions:
        joint.check(position)
    files = read_texts(paths_of(calibration))
    held_out = read_texts(paths_of(text))
    tokenizer = zoo.tokenizer(_tokenized(zoo, joint).model)
    samples = take_samples(held_out, files, tokenizer, tokens) if held_out else []
    trial = None
    if using is None:
        if not files:
            raise SourceError("there is no text to fit on", hint="give --calibration FILE")
        documents = [
            tokenizer(document, verbose=False)["input_ids"]
            for file in files
            for document in file.documents
        ]
        trial = _Trial(zoo, joint, positions, documents, settings or Settings(), progress)
        fitted = StitchBlock.of(trial.fit(), joint.target.family.name)
    else:
        if also:
            raise UsageError("a stitch that was fitted before takes no further positions")
        fitted = _fitted(zoo, using, joint, at)
    digest = _keep(zoo, joint, at, fitted, name)
    done = Stitched(
        name=name, digest=digest, block=fitted.block.digest, source=first, target=last, at=at,
        positions=positions, parameters=fitted.parameters,
        seconds={"fit": trial.seconds} if trial is not None else {},
        settings=trial.settings.to_json() if trial is not None else {},
        calibration_tokens=trial.ids.numel() if trial is not None else 0,
    )  # fmt: skip
    if not samples:
        return done
    model = zoo.objects.model(digest)
    chains = {
        "source": zoo.chain(joint.source.model),
        "target": zoo.chain(joint.target.model),
        "stitched": zoo.chain(model),
    }
    rivals = CONTROLS if controls and trial is not None else ()
    if trial is not None and rivals:
        began = time.monotonic()
        chains |= {control.name: trial.control(control, at) for control in rivals}
        done = replace(done, seconds={**done.seconds, "controls": time.monotonic() - began})
    documents = [ids for sample in samples for ids in sample.documents]
    found = {
        what: surprise(chain, documents, progress, f"perplexity: {what}")
        for what, chain in chains.items()
    }
    return replace(
        done,
        perplexity={what: _by_text(one, samples) for what, one in found.items()},
        margins={c.name: found[c.name].above(found["stitched"]) for c in rivals},
        record=certify_whole(zoo, joint.target.model, model, samples, files, tokens, progress),
    )


def place(text: str) -> tuple[str, int]:
    """``NAME@LAYER`` as name and number.

    Raises
    ------
    UsageError
    """
    name, at, number = text.rpartition("@")
    if not (name and at and number.isascii() and number.isdecimal() and len(number) < 6):
        raise UsageError(f"{text!r} names no layer of a model", hint="give NAME@LAYER: base@4")
    return name, int(number)


@dataclass
class _Trial:
    """Fitting for one joint: the stitch, and its controls in the same way."""

    zoo: Zoo
    joint: Joint
    positions: Sequence[Position]
    documents: Sequence[Sequence[int]]
    settings: Settings
    progress: Progress
    seconds: float = 0.0

    def __post_init__(self) -> None:
        length = min(
            piece_length(self._chain(one)) for one in (self.joint.source, self.joint.target)
        )
        self.ids = pieces(self.documents, max(self.joint.widths), length)

    def fit(self) -> Stitch:
        """The stitch; how long it took is noted."""
        began = time.monotonic()
        fitted = self._fit(self.joint, Control(""))
        self.seconds = time.monotonic() - began
        return fitted

    def control(self, control: Control, at: Position) -> RunnableChain:
        """A control's chain, fitted as the stitch was; nothing of it is kept."""
        joint = self.joint
        if control.random:
            joint = replace(joint, source=_random(joint.source))
        fitted = StitchBlock.of(self._fit(joint, control), joint.target.family.name)
        model, blocks = joint.model(at, fitted.block)
        source = Beside(StreamedTensors(self.zoo.tensor), fitted.tensors)
        return RunnableChain(model, blocks, joint.config(at), source)

    def _fit(self, joint: Joint, control: Control) -> Stitch:
        def tell(what: str, done: int, total: int, new: int) -> None:
            self.progress(f"{control.name} {what}".strip(), done, total, new)

        return fit(
            Pair(self._chain(joint.source), self._chain(joint.target)),
            self.positions,
            self.ids,
            self.settings,
            mapped=control.mapped,
            shuffled=control.shuffled,
            progress=tell,
        )

    def _chain(self, source: Source) -> RunnableChain:
        tensors = Beside(StreamedTensors(self.zoo.tensor), {})
        return RunnableChain(source.model, source.blocks, source.config, tensors)


def _random(source: Source) -> Source:
    """A model of the same shape that knows nothing."""
    blocks = {digest: randomised(block) for digest, block in source.blocks.items()}

    def moved(hops: Sequence[Hop]) -> tuple[Hop, ...]:
        return tuple(replace(hop, block=blocks[hop.block].digest) for hop in hops)

    return replace(
        source,
        model=replace(source.model, chain=moved(source.model.chain)),
        blocks={block.digest: block for block in blocks.values()},
        layers=tuple(map(moved, source.layers)),
        embedding=randomised(source.embedding),
        head=randomised(source.head),
        tokens=drawn(source.tokens),
        lm_head=drawn(source.lm_head),
    )


def _tokenized(zoo: Zoo, joint: Joint) -> Source:
    """Whose tokenizer reads text: the target's, or the source's where it has none."""
    return joint.target if vocabulary(zoo, joint.target) is not None else joint.source


def _fitted(zoo: Zoo, name: str, joint: Joint, at: Position) -> StitchBlock:
    """The stitch of a model that was stitched before.

    Raises
    ------
    UsageError
        Where it has none.
    BlockzooError, UnservableError
        Where it is of other widths, or was not fitted for that position.
    """
    stitches = [hop for hop in zoo.model(name).chain if hop.kind == KIND]
    if not stitches:
        raise UsageError(f"{name} has no stitch", hint="name a model that was made by `stitch`")
    block = zoo.block(stitches[0].block)
    if list(joint.widths) != block.spec["stitch"]["widths"]:
        told = " to ".join(map(str, block.spec["stitch"]["widths"]))
        raise BlockzooError(
            f"the stitch of {name} goes from width {told}, not from {joint.widths[0]} to "
            f"{joint.widths[1]}"
        )
    with torch.device("meta"):
        Stitch.of_spec(block.spec).stand(at)
    return StitchBlock(block, {})


def _keep(zoo: Zoo, joint: Joint, at: Position, fitted: StitchBlock, name: str) -> str:
    """Write the stitched model down and let a name point to it; returns its digest."""
    short, tag = split_name(name)
    with NameLock(zoo.objects.layout, short), Session(zoo.objects) as session:
        for source in (joint.source, joint.target):
            zoo.rely_on(session, source.model)
        for ref in fitted.block.tensors.values():
            if ref.digest in fitted.tensors:
                session.tensor(ref, data_of(fitted.tensors[ref.digest]))
            else:
                session.rely("tensors", ref.digest)
        model, blocks = joint.model(at, fitted.block, joint.files(session, at))
        if reason := why_not_served(model, blocks, joint.config(at)):
            raise BlockzooError(f"the stitched model could not be run: {reason}")
        for block in blocks.values():
            session.block(block)
        session.model(model)
        if not session.commit():
            raise NotFoundError("a model that is stitched has just been collected")
        before = zoo.refs.get(short).tags.get(tag or LATEST)
        if before is None or before.digest != model.digest:
            said = f"{joint.source.name}@{at[0]} {joint.target.name}@{at[1]}"
            zoo.refs.set(short, tag, tagged(model), "stitch", said)
    return model.digest


def _by_text(found: Surprise, samples: Sequence[Sample]) -> Mapping[str, float]:
    """Perplexities over all documents and by text."""
    told, first = {"together": found.perplexity()}, 0
    for sample in samples:
        last = first + len(sample.documents)
        told[sample.text.domain] = found.perplexity(first, last)
        first = last
    return told
