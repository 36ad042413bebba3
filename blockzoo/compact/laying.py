"""From a choice for every matrix to a chain: the base's blocks, and what is laid on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from blockzoo.compact.differences import Differences, Matrix
from blockzoo.compact.options import Option
from blockzoo.equivalence.losses import Variant
from blockzoo.equivalence.swap import Swap, swapped
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.tensors import StreamedTensors
from blockzoo.records import Block
from blockzoo.store.session import Session
from blockzoo.tensors import TensorRef

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo

Choice = Mapping[Matrix, Option]


@dataclass(frozen=True)
class Laid:
    """A choice as swaps.

    Parameters
    ----------
    swaps : tuple of Swap
        In the tuned model.
    blocks : dict of str to Block
        The adapter blocks that they name, by digest.
    """

    swaps: tuple[Swap, ...]
    blocks: Mapping[str, Block]

    def keep(self, session: Session) -> None:
        """Write the adapter blocks; what they keep is in the zoo already."""
        for block in self.blocks.values():
            for ref in block.tensors.values():
                session.rely("tensors", ref.digest)
            session.block(block)


def lay(differences: Differences, choice: Choice) -> Laid:
    """What a choice makes of the tuned model's chain.

    A hop at which every matrix is kept full, or none differs, keeps its own block.
    """
    swaps: list[Swap] = []
    blocks: dict[str, Block] = {}
    base = differences.base
    apart = {hop for m in differences.matrices if choice[m].method != "full" for hop in m.hops}
    for matrix in differences.matrices:
        if matrix.hops & apart:  # a tied head reads the embedding's: both are laid or neither
            apart |= matrix.hops
    for number, (hop, other) in enumerate(zip(differences.tuned.chain, base.chain, strict=True)):
        here = [(p, m) for m in differences.matrices for p in m.places if p.hop == number]
        replaced = differences.replaced.get(number, {})
        if number not in apart:
            continue
        modules, replaces = {}, {slot: slot for slot in replaced}
        tensors: dict[str, TensorRef] = dict(replaced)
        for place, matrix in here:
            option = choice[matrix]
            if option.method == "full":
                replaces[f"{place.path}.weight"] = f"{place.path}.weight"
                tensors[f"{place.path}.weight"] = matrix.tuned
            elif option.method != "none":
                modules[place.path] = dict(option.facts)
                for end, ref in option.tensors.items():
                    tensors[f"{place.path}.{end}"] = ref
        adapters: tuple[str, ...] = ()
        if modules or replaces:
            spec = {"type": "compact", "config": {}, "modules": modules, "replaces": replaces}
            block = Block("adapter", spec, tensors)
            blocks[block.digest] = block
            adapters = (block.digest,)
        swaps.append(Swap(hop.name, hop.block, other.block, base.digest, other.name, adapters))
    return Laid(tuple(swaps), blocks)


def variant(zoo: Zoo, differences: Differences, laid: Laid) -> Variant:
    """The chain, to be measured beside the tuned model's; its blocks need not be in the zoo."""
    model = swapped(differences.tuned, laid.swaps)
    blocks = zoo.blocks_of(differences.tuned) | zoo.blocks_of(differences.base) | dict(laid.blocks)
    source = StreamedTensors(zoo.tensor)
    chain = RunnableChain(model, blocks, zoo.config(differences.tuned), source)
    names = [hop.name for hop in model.chain]
    first = names.index(laid.swaps[0].hop) if laid.swaps else len(names) - 1
    return Variant.changed_from(first, chain)
