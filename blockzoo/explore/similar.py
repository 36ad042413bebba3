"""What is nearest to a model or a block, and the family tree, as a zoo shows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockzoo.errors import NotFoundError, UsageError
from blockzoo.explore.families import FamilyTree, summary
from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import SHORT_DIGEST
from blockzoo.progress import Progress, silent
from blockzoo.records import Block
from blockzoo.similarity.kinship import own_tensors
from blockzoo.similarity.lineage import families
from blockzoo.similarity.ranking import nearest_blocks, nearest_models
from blockzoo.similarity.sketches import Sketches
from blockzoo.store.reach import Reach, first_names, reach, roots

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

#: between the name of a model and that of a hop, for a block: ``acme/sql@layers.3.mlp``
AT = "@"

_SHORTEST_DIGEST = 8  # hex digits
_MODELS = (
    Column("name"),
    Column("kind"),
    Column("distance", "relative distance", kind="ratio"),
    Column("differs", "differs in"),
    Column("rows_added", "rows added", kind="int"),
)
_BLOCKS = (
    Column("block", kind="digest"),
    Column("distance", "largest distance", kind="ratio"),
    Column("tensor", "in tensor"),
    Column("mean", "mean distance", kind="ratio"),
    Column("where", "where"),
)


def family_tree(zoo: Zoo, progress: Progress = silent) -> FamilyTree:
    """Which of a zoo's models descend from which."""
    return FamilyTree(families(zoo.objects, zoo.refs, progress=progress))


def similar(zoo: Zoo, what: str, top_k: int = 10, progress: Progress = silent) -> Table:
    """What is nearest to a model or a block.

    Parameters
    ----------
    zoo : Zoo
    what : str
        A model's name or digest; ``NAME@HOP`` or the first 8 or more digits of a block's digest
        for a block.
    top_k : int
        Rows at most.
    progress : Progress
        Of the sketches that have to be made.

    Returns
    -------
    Table
        Distances are estimates from sketches, off by 2% of themselves: ‖a−b‖ over the larger
        norm for models, over the norm of the block asked about for blocks.

    Raises
    ------
    NotFoundError
        Where there is no such model, hop or block.
    """
    if top_k < 1:
        raise UsageError(f"the nearest {top_k} cannot be shown", hint="give --top-k 1 or more")
    found = reach(zoo.objects, roots(zoo.refs))
    for error in found.unread.values():
        raise error
    block = _block(zoo, found, what)
    if block is not None:
        return _blocks(zoo, found, what, block, top_k, progress)
    return _models(zoo, found, what, top_k, progress)


def _models(zoo: Zoo, found: Reach, what: str, top_k: int, progress: Progress) -> Table:
    digest = zoo.resolve(what)
    asked = zoo.objects.model(digest)
    if asked.compact:
        raise UsageError(
            f"{what} is compact: its blocks are another model's, so they tell nothing of it",
            hint="`blockzoo similar` alone shows whose; ask for its exact version by its digest",
        )
    whole = {d: model for d, model in found.models.items() if not model.compact}
    records = {digest: asked, **whole}
    blocks = {**zoo.blocks_of(records[digest]), **found.blocks}
    models = {d: own_tensors(model, blocks) for d, model in records.items()}
    names = first_names(zoo.refs)
    ranked = nearest_models(Sketches(zoo.objects), digest, models, progress)
    rows = []
    for kin in [kin for kin in ranked if kin.second in names][:top_k]:
        kind = records[kin.second].kind
        rows.append(
            {
                "name": names[kin.second],
                "digest": kin.second,
                "kind": kind,
                "distance": kin.distance,
                "differs": summary(kin.hops),
                "hops": dict(kin.hops),
                # the rows of an adapter's matrices are its rank
                "rows_added": kin.rows_added or None if kind == "model" else None,
            }
        )
    return Table(f"nearest to {what}", _MODELS, rows)


def _blocks(
    zoo: Zoo, found: Reach, what: str, block: Block, top_k: int, progress: Progress
) -> Table:
    names = first_names(zoo.refs)
    where: dict[str, list[str]] = {}
    for digest, model in found.models.items():
        for hop in model.chain:
            for own in hop.adapters if model.kind == "adapter" else (hop.block,):
                name = names.get(digest, digest[:SHORT_DIGEST])
                where.setdefault(own, []).append(f"{name}{AT}{hop.name}")
    rows = [
        {
            "block": like.digest,
            "distance": like.largest,
            "tensor": like.tensor,
            "mean": like.mean,
            "where": sorted(where.get(like.digest, ())),
        }
        for like in nearest_blocks(Sketches(zoo.objects), block, found.blocks, progress)[:top_k]
    ]
    title = f"nearest to {block.kind} block {block.digest[:SHORT_DIGEST]}"
    return Table(title if AT not in what else f"nearest to {what}", _BLOCKS, rows)


def _block(zoo: Zoo, found: Reach, what: str) -> Block | None:
    """The block that is meant; None where `what` is no block."""
    name, at, hop_name = what.partition(AT)
    if at:
        model = zoo.model(name)
        hop = model.hop(hop_name, name)
        digests = list(hop.adapters) if model.kind == "adapter" else [hop.block]
        if not digests or not digests[0]:
            raise NotFoundError(f"{name} has no block of its own at {hop_name}")
        return zoo.block(digests[0])
    if len(what) < _SHORTEST_DIGEST or not set(what) <= set("0123456789abcdef"):
        return None
    digests = [digest for digest in found.blocks if digest.startswith(what)]
    if len(digests) > 1:
        raise UsageError(f"{what} begins {len(digests)} blocks' digests", hint="give more digits")
    return found.blocks[digests[0]] if digests else None
