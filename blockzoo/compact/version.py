"""A name's new version, made of its base's blocks and compact differences; and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockzoo.compact.unmerge import adapter_of, is_adapter
from blockzoo.compact.weights import named_tensors
from blockzoo.equivalence.certify import keep_records
from blockzoo.equivalence.swap import swapped
from blockzoo.errors import BlockzooError, NotFoundError
from blockzoo.formats.safetensors import header
from blockzoo.records import Model, Part, Recipe
from blockzoo.store.refs import LATEST, split_name, tagged
from blockzoo.store.session import NameLock, Session

if TYPE_CHECKING:
    from blockzoo.compact.plan import Point
    from blockzoo.zoo import Zoo

WEIGHTS = "model.safetensors"


def keep_version(zoo: Zoo, name: str, digest: str, points: Sequence[Point], *, beside: bool) -> str:
    """Keep certified points, and let the name point to the first, unless they stay beside it.

    Raises
    ------
    BlockzooError
        Where the name no longer points to the model that was measured.
    """
    short, tag = split_name(name)
    records = [point.record for point in points if point.record is not None]
    with NameLock(zoo.objects.layout, short):
        if zoo.resolve(name) != digest:
            raise BlockzooError(
                f"{name} was changed since the plan was made", hint="make the plan again"
            )
        exact = zoo.model(digest)
        with Session(zoo.objects) as session:
            zoo.rely_on(session, exact)
            for point in points:
                for block in point.laid.blocks.values():
                    for ref in block.tensors.values():
                        session.rely("tensors", ref.digest)
                    session.block(block)
            if not session.commit():
                raise BlockzooError("what the plan needs was collected", hint="make it again")
        keep_records(zoo, records)
        if beside:
            return digest
        with Session(zoo.objects) as session:
            model = compact_model(zoo, session, exact, points[0])
            session.model(model)
            zoo.rely_on(session, model)
            if not session.commit():
                raise BlockzooError("what the plan needs was collected", hint="make it again")
        zoo.refs.set(
            short, tag, tagged(model, points[0].bytes.stored), "compact", records[0].digest
        )
    return model.digest


def compact_model(zoo: Zoo, session: Session, exact: Model, point: Point) -> Model:
    """The record of a compact version: the exact one's files, weights to be made on the way out.

    A LoRA that had been merged, and is all that differs, becomes an adapter again.
    """
    assert point.record is not None
    base = point.laid.swaps[0].donor
    if is_adapter(exact, zoo.model(base), point.laid):
        return adapter_of(zoo, session, exact, base, point.laid, point.record.digest)
    tensors = named_tensors(exact, zoo.blocks_of(exact))
    begin = header(tensors)
    size = sum(ref.nbytes for ref in tensors.values())
    files = [recipe for recipe in exact.files if not is_weights(recipe)]
    files.append(Recipe(WEIGHTS, (session.literal(begin), Part("chain", size))))
    return Model(
        "model",
        exact.family,
        swapped(exact, point.laid.swaps).chain,
        tuple(sorted(files, key=lambda recipe: recipe.path)),
        exact.ties,
        evidence=point.record.digest,
    )


def is_weights(recipe: Recipe) -> bool:
    """Whether a file has a checkpoint's weights in it, or tells in which files they are."""
    return recipe.path.endswith(".index.json") or any(
        part.source == "tensor" for part in recipe.parts
    )


def revert(zoo: Zoo, name: str) -> str:
    """Let a name point to what it pointed to before it was made compact.

    Raises
    ------
    NotFoundError
        Where it was never made compact, or the exact version has been collected.
    """
    short, tag = split_name(name)
    now = zoo.resolve(name)
    events = [event for event in zoo.refs.history(short) if event.tag == (tag or LATEST)]
    made = [i for i, event in enumerate(events) if event.action == "compact"]
    if not made or events[made[-1]].digest != now:
        raise NotFoundError(f"{name} is no compact version", hint=f"see `blockzoo history {short}`")
    record = zoo.equivalence(events[made[-1]].source)
    try:
        exact = zoo.model(record.model)
        with Session(zoo.objects) as session:
            zoo.rely_on(session, exact)
            kept = session.commit()
    except BlockzooError:
        kept = False
    if not kept:
        raise NotFoundError(
            f"the exact version of {name}, {record.model[:12]}, has been collected",
            hint="ingest it again from its source",
        )
    zoo.refs.set(short, tag, tagged(exact), "revert", now)
    return exact.digest
