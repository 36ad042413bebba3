"""The tables a zoo shows of itself: models, blocks, history, statistics, one model."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockzoo.errors import DamagedError
from blockzoo.explore.loading import loading
from blockzoo.explore.stats import Stats
from blockzoo.explore.table import Column, Table
from blockzoo.explore.view import ModelView
from blockzoo.records import Model
from blockzoo.store.reach import Reach, reach, roots
from blockzoo.store.refs import LATEST, split_name
from blockzoo.tensors import TensorRef

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

_MODELS = (
    Column("name"),
    Column("tags"),
    Column("kind"),
    Column("family"),
    Column("digest", kind="digest"),
    Column("bytes", kind="bytes"),
    Column("new_bytes", "new", kind="bytes"),
    Column("time", "ingested", kind="time"),
)
_BLOCKS = (
    Column("digest", "block", kind="digest"),
    Column("kind"),
    Column("hops"),
    Column("tensors", kind="int"),
    Column("bytes", kind="bytes"),
    Column("models", kind="int"),
)
_HISTORY = (
    Column("time", kind="time"),
    Column("action"),
    Column("tag"),
    Column("digest", kind="digest"),
    Column("source"),
)


def models(zoo: Zoo) -> Table:
    """Every named model; reads the names' newest entries and nothing else.

    A name whose newest entry cannot be read is a row of kind ``damaged``.
    """
    rows: list[dict[str, Any]] = []
    damaged: dict[str, DamagedError] = {}
    for ref in zoo.refs.all(damaged):
        for target in dict.fromkeys(ref.tags.values()):
            tags = sorted(tag for tag, to in ref.tags.items() if to == target)
            name = ref.name if LATEST in tags else f"{ref.name}:{tags[0]}"
            others = [tag for tag in tags if tag != LATEST]
            kind = "detached adapter" if target.detached else target.kind
            rows.append(vars(target) | {"name": name, "tags": others, "kind": kind})
    unknown = dict.fromkeys(column.key for column in _MODELS)
    rows += [unknown | {"name": name, "tags": [], "kind": "damaged"} for name in damaged]
    return Table("models", _MODELS, sorted(rows, key=lambda row: row["name"]))


def blocks(zoo: Zoo) -> Table:
    """Every distinct block that a name reaches, where it stands and how many models use it.

    A block that only a certified chain uses stands nowhere.
    """
    found = reach(zoo.objects, roots(zoo.refs))
    hops: dict[str, set[str]] = {}
    users: dict[str, set[str]] = {}
    for model in found.models.values():
        for hop in model.chain:
            for digest in filter(None, (hop.block, *hop.adapters)):
                hops.setdefault(digest, set()).add(hop.name)
                users.setdefault(digest, set()).add(model.digest)
    rows = [
        {
            "digest": digest,
            "kind": block.kind,
            "hops": sorted(hops.get(digest, ())),
            "tensors": len(block.tensors),
            "bytes": block.nbytes,
            "models": len(users.get(digest, ())),
        }
        for digest, block in found.blocks.items()
    ]
    return Table("blocks", _BLOCKS, rows)


def view(zoo: Zoo, name: str) -> ModelView:
    """One model's chain, and which other names share each block and tensor."""
    model = zoo.model(name)
    named = {d: {_plain(n) for n in names} for d, names in roots(zoo.refs).items()}
    others = reach(zoo.objects, {d: n for d, n in named.items() if d != model.digest})
    sharers = {digest: sorted(names) for (_, digest), names in others.names.items()}
    base = min(named.get(model.base, {model.base[:12]})) if model.base else None
    blocks = zoo.blocks_of(model)
    cost = loading(zoo.objects, (r for b in blocks.values() for r in b.tensors.values()))
    return ModelView(name, model, blocks, sharers, base, zoo.why_not_served(model), cost)


def stats(zoo: Zoo) -> Stats:
    """What the named models take, with and without sharing.

    Raises
    ------
    DamagedError
        Where a record cannot be read.
    """
    named = roots(zoo.refs)
    found = reach(zoo.objects, named)
    for error in found.unread.values():
        raise error
    kept = [found.models[digest] for digest in named]
    sizes = found.tensors
    costs = {
        _plain(min(names)): loading(zoo.objects, _tensors(found, found.models[digest]))
        for digest, names in named.items()
    }
    return Stats(
        models=sum(model.kind == "model" for model in kept),
        adapters=sum(model.kind == "adapter" for model in kept),
        blocks=len(found.blocks),
        tensors=len(sizes),
        logical_bytes=sum(model.nbytes for model in kept),
        distinct_tensor_bytes=sum(sizes.values()),
        stored_bytes=_stored_bytes(zoo.path),
        loading=costs,
    )


def _tensors(found: Reach, model: Model) -> Iterator[TensorRef]:
    for hop in model.chain:
        for digest in filter(None, (hop.block, *hop.adapters)):
            yield from found.blocks[digest].tensors.values()


def history(zoo: Zoo, name: str) -> Table:
    """What a name pointed to, oldest first."""
    rows = [vars(event) for event in zoo.refs.history(split_name(name)[0])]
    return Table(f"history of {name}", _HISTORY, rows)


def _stored_bytes(root: Path) -> int:
    """What the zoo's files take, ``cache/`` and ``tmp/`` left out."""
    total = 0
    for folder, folders, files in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in ("cache", "tmp")]
        for file in files:
            with contextlib.suppress(FileNotFoundError):  # collected, or packed, just now
                total += os.lstat(os.path.join(folder, file)).st_size
    return total


def _plain(name: str) -> str:
    return name.removesuffix(f":{LATEST}")
