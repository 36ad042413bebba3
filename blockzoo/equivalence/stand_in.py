"""Certifying that a whole chain, such as a stitched one, may stand in for a model.

As with swaps, next-token distributions are compared token by token and graded; but no hop stands
for another, so the record names the model that stands in.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from blockzoo.equivalence import texts
from blockzoo.equivalence.evidence import evaluate
from blockzoo.equivalence.grade import judge
from blockzoo.equivalence.losses import Variant, measure
from blockzoo.equivalence.precision import RoundTrip
from blockzoo.equivalence.record import Equivalence
from blockzoo.errors import BlockzooError
from blockzoo.execution.passage import piece_length
from blockzoo.execution.tensors import StreamedTensors
from blockzoo.execution.texts import Text
from blockzoo.progress import Progress, silent
from blockzoo.records import Model
from blockzoo.store.session import Session

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


def certify_whole(
    zoo: Zoo,
    model: Model,
    stand_in: Model,
    samples: Sequence[texts.Sample],
    chosen_on: Sequence[Text],
    tokens: int,
    progress: Progress = silent,
) -> Equivalence:
    """Measure and grade one model as a stand-in for another; the record is kept.

    Parameters
    ----------
    zoo : Zoo
    model, stand_in : Model
        With one vocabulary.
    samples : sequence of Sample
        What is measured on.
    chosen_on : sequence of Text
        What the stand-in was made on; not measured on.
    tokens : int
        Of each text at most, as the samples were taken.
    progress : Progress
        Told tokens.
    """
    texts.remember(zoo.objects.layout, [*(sample.text for sample in samples), *chosen_on])
    original = zoo.chain(model)
    variants = [
        Variant(zoo.chain(model, StreamedTensors(zoo.tensor, torch.bfloat16))),
        Variant(zoo.chain(model, RoundTrip(StreamedTensors(zoo.tensor)))),
        Variant(zoo.chain(stand_in)),
    ]
    documents = [ids for sample in samples for ids in sample.documents]
    domains = [sample.text.domain for sample in samples for _ in sample.documents]
    floor, int8, evidence = [
        evaluate(losses, domains) for losses in measure(original, variants, documents, progress)
    ]
    record = Equivalence(
        model.digest,
        (),
        judge([evidence], floor)[0],
        evidence,
        floor,
        int8,
        tuple(sample.to_json() for sample in samples),
        tuple({"domain": text.domain, "digest": text.digest} for text in chosen_on),
        "",
        1,
        {"tokens": tokens, "length": piece_length(original), "resamples": 0, "dtype": "float32"},
        stand_in=stand_in.digest,
    )
    with Session(zoo.objects) as session:
        session.equivalence(record.digest, record.encoded)
        if not session.commit():
            raise BlockzooError("the record was collected while it was written")
    return record
