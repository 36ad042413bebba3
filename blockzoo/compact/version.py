"""A name's new version, made of its base's blocks and compact differences; and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from blockzoo.compact.unmerge import adapter_of, is_adapter
from blockzoo.compact.weights import is_weights
from blockzoo.equivalence.swap import swapped
from blockzoo.errors import BlockzooError, NotFoundError
from blockzoo.formats.safetensors import header
from blockzoo.records import Model, Part, Recipe
from blockzoo.store.refs import split_name, tagged
from blockzoo.store.session import NameLock, Session

if TYPE_CHECKING:
    from blockzoo.compact.plan import Point
    from blockzoo.zoo import Zoo

WEIGHTS = "model.safetensors"


def keep_version(zoo: Zoo, name: str, digest: str, points: Sequence[Point], *, beside: bool) -> str:
    """Keep certified points, and let the name point to the first, unless they stay beside it.

    Raises
    ------
    NotFoundError
        Where a version is to be kept and the name is none.
    BlockzooError
        Where the name no longer points to the model that was measured, or what is needed was
        collected.
    """
    short, tag = split_name(name)
    records = [point.record for point in points if point.record is not None]
    # the session lasts until all is referred to: a collection that takes the young waits for it
    with NameLock(zoo.objects.layout, short), Session(zoo.objects) as session:
        # a version needs a name to move; beside it, a digest will do
        if (zoo.resolve(name) if beside else zoo.refs.find(name).digest) != digest:
            raise _changed(name)
        exact = zoo.model(digest)
        zoo.rely_on(session, exact)
        for point in points:
            _keep_blocks(session, point)
        _commit(session)  # before the records, which are reached as soon as they are there
        for record in records:
            session.equivalence(record.digest, record.encoded)
        _commit(session)
        if beside:
            return digest
        model = compact_model(zoo, session, exact, points[0])
        session.model(model)
        _commit(session)
        target = tagged(model, points[0].bytes.stored)
        if not zoo.refs.set(short, tag, target, "compact", records[0].digest, instead_of=digest):
            raise _changed(name)
    return model.digest


def _keep_blocks(session: Session, point: Point) -> None:
    for swap in point.laid.swaps:
        if session.objects.find("blocks", swap.by) is None:
            raise _collected()
        block = session.objects.block(swap.by)
        session.rely("blocks", swap.by)
        for ref in block.tensors.values():
            session.rely("tensors", ref.digest)
    point.laid.keep(session)


def _commit(session: Session) -> None:
    if not session.commit():
        raise _collected()


def _changed(name: str) -> BlockzooError:
    return BlockzooError(f"{name} was changed since the plan was made", hint="make the plan again")


def _collected() -> BlockzooError:
    return BlockzooError("what the plan needs was collected", hint="make the plan again")


def compact_model(zoo: Zoo, session: Session, exact: Model, point: Point) -> Model:
    """The record of a compact version: the exact one's files, weights to be made on the way out.

    A LoRA that had been merged, and is all that differs, becomes an adapter again.
    """
    assert point.record is not None
    base = point.laid.swaps[0].donor
    if is_adapter(zoo, exact, zoo.model(base), point.laid):
        return adapter_of(zoo, session, exact, base, point.laid, point.record.digest)
    tensors = exact.tensors(zoo.blocks_of(exact))
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


def revert(zoo: Zoo, name: str) -> str:
    """Let a name point to the exact version that its compact one was made of.

    Raises
    ------
    NotFoundError
        Where it is no compact version, or the exact version has been collected.
    """
    short, tag = split_name(name)
    now = zoo.objects.model(zoo.refs.find(name).digest)
    if not now.evidence:
        raise NotFoundError(f"{name} is no compact version", hint=f"see `blockzoo history {short}`")
    digest = zoo.equivalence(now.evidence).model
    with Session(zoo.objects) as session:
        if zoo.objects.find("models", digest) is not None:
            exact = zoo.objects.model(digest)
            zoo.rely_on(session, exact)
            if session.commit():
                target = tagged(exact)
                if zoo.refs.set(short, tag, target, "revert", now.digest, instead_of=now.digest):
                    return digest
                raise BlockzooError(f"{name} was changed meanwhile", hint="look, and run it again")
    raise NotFoundError(
        f"the exact version of {name}, {digest[:12]}, has been collected",
        hint="ingest it again from its source",
    )
