"""A model with some of its blocks swapped for others', as a chain that runs.

Nothing is stored: the model record of a swapped chain lives as long as its certification. Its
adapters, its ties and its tokenizer stay the receiving model's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from blockzoo.errors import BlockzooError, NotFoundError, UsageError
from blockzoo.explore.values import SHORT_DIGEST, format_shape
from blockzoo.records import Block, Hop, Model
from blockzoo.tensors import canonical_json

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


@dataclass(frozen=True)
class Swap:
    """At one hop, one block for another.

    Parameters
    ----------
    hop : str
        The hop's name in the receiving model.
    block : str
        Digest of the block that is there.
    by : str
        Digest of the block that stands in for it.
    donor, donor_hop : str
        The digest of a model that has it, and the hop where.
    adapters : tuple of str
        Digests of adapter blocks that are laid on it: what it differs from `block` by, compactly.
    """

    hop: str
    block: str
    by: str
    donor: str
    donor_hop: str
    adapters: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        data = {name: value for name, value in vars(self).items() if name != "adapters"}
        return data | ({"adapters": list(self.adapters)} if self.adapters else {})

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Swap:
        return cls(**{**data, "adapters": tuple(data.get("adapters", ()))})


def find_swaps(zoo: Zoo, model: Model, wanted: str | Iterable[str]) -> tuple[Swap, ...]:
    """The swaps that are asked for.

    Parameters
    ----------
    zoo : Zoo
    model : Model
        The receiving one.
    wanted : str or iterable of str
        ``HOP=OTHER`` or ``HOP=OTHER@HOP`` each: a hop of the receiving model, a model's name,
        and the hop there if it is another. In HOP, ``*`` stands for anything; then hops where
        both have the same block are left as they are.

    Raises
    ------
    UsageError
        Where one is not of that form, would change nothing, or comes twice.
    NotFoundError
        Where there is no such model or hop.
    BlockzooError
        Where a block cannot stand in there: another shape, or another computation.
    """
    found: dict[str, Swap] = {}
    for text in [wanted] if isinstance(wanted, str) else wanted:
        for swap in _parse(zoo, model, text):
            if swap.hop in found:
                raise UsageError(f"{swap.hop} is swapped twice")
            found[swap.hop] = swap
    if not found:
        raise UsageError("no block is to be swapped", hint="give HOP=OTHER, such as layers.3.mlp=x")
    order = [hop.name for hop in model.chain]
    return tuple(sorted(found.values(), key=lambda swap: order.index(swap.hop)))


def swapped(model: Model, swaps: Sequence[Swap]) -> Model:
    """The model with other blocks in its chain; it is not a record of any zoo."""
    by = {swap.hop: swap for swap in swaps}
    chain = []
    for hop in model.chain:
        if swap := by.get(hop.name):
            hop = replace(hop, block=swap.by, adapters=(*hop.adapters, *swap.adapters))
        chain.append(hop)
    return replace(model, chain=tuple(chain))


def _parse(zoo: Zoo, model: Model, text: str) -> list[Swap]:
    pattern, _, source = text.partition("=")
    donor_name, at, donor_hop = source.partition("@")
    if not (pattern and donor_name) or (at and not donor_hop):
        raise UsageError(f"{text!r} is no swap", hint="give HOP=OTHER or HOP=OTHER@HOP")
    donor = zoo.model(donor_name)
    hops = [hop for hop in model.chain if fnmatchcase(hop.name, pattern)]
    if not hops:
        names = ", ".join(hop.name for hop in model.chain)
        raise NotFoundError(f"the model has no hop {pattern!r}", hint=f"it has {names}")
    many = any(c in pattern for c in "*?[")
    swaps = []
    for hop in hops:
        other = donor.hop(donor_hop or hop.name, donor_name)
        if other.block == hop.block:
            if many:
                continue
            raise UsageError(f"{hop.name} is the same block as {donor_name}'s already")
        if other.adapters:
            raise UsageError(
                f"{other.name} of {donor_name} has an adapter on it, which a swap does not take "
                "along",
                hint="name its base instead",
            )
        _check_fits(hop, zoo.block(hop.block), other, zoo.block(other.block), donor_name)
        swaps.append(Swap(hop.name, hop.block, other.block, donor.digest, other.name))
    if not swaps:
        raise UsageError(f"every hop that {pattern!r} names is the same block as {donor_name}'s")
    return swaps


def _check_fits(hop: Hop, block: Block, other_hop: Hop, other: Block, donor: str) -> None:
    what = f"{other_hop.name} of {donor} ({other.digest[:SHORT_DIGEST]})"
    if block.kind != other.kind:
        raise BlockzooError(f"{what} is {other.kind}, and {hop.name} is {block.kind}")
    for name in sorted({*block.tensors, *other.tensors}):
        own, its = block.tensors.get(name), other.tensors.get(name)
        if own is None or its is None:
            raise BlockzooError(f"{what} {'has no' if own else 'has a further'} tensor {name}")
        if own.shape != its.shape:
            raise BlockzooError(
                f"{what} has another shape: {name} is {format_shape(its.shape)}, where "
                f"{format_shape(own.shape)} is wanted",
                hint="blocks of different shape need a stitch between them",
            )
    if canonical_json(block.spec) != canonical_json(other.spec):
        raise BlockzooError(
            f"{what} computes something else than {hop.name}: "
            f"{', '.join(differences(block.spec, other.spec))}"
        )


def fits(block: Block, other: Block) -> bool:
    """Whether a block may stand where another stands: of one kind, shape and computation."""
    shapes = [{name: ref.shape for name, ref in each.tensors.items()} for each in (block, other)]
    same = canonical_json(block.spec) == canonical_json(other.spec)
    return block.kind == other.kind and shapes[0] == shapes[1] and same


def differences(a: Any, b: Any, path: str = "") -> list[str]:
    """Where two specs differ, as ``config.rope_theta (10000 and 500000)``."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return [
            line
            for key in sorted({*a, *b})
            for line in differences(a.get(key), b.get(key), f"{path}.{key}".lstrip("."))
        ]
    return [] if a == b else [f"{path} ({a} and {b})"]
