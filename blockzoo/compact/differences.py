"""Where a tuned model differs from its base: matrices, which can be made compact, and the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from transformers.pytorch_utils import Conv1D

from blockzoo.errors import BlockzooError
from blockzoo.execution.binding import Source
from blockzoo.execution.fused import Fused
from blockzoo.records import Model
from blockzoo.tensors import TensorRef

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


@dataclass(frozen=True)
class Place:
    """A leaf of a hop's executor.

    Parameters
    ----------
    hop : int
        Number in the chain; the embedding is 0.
    path : str
        The leaf's local name.
    lookup : bool
        Whether rows are looked up in it (an embedding), not multiplied with.
    transposed : bool
        Whether it is kept as (in, out).
    """

    hop: int
    path: str
    lookup: bool
    transposed: bool = False


@dataclass(frozen=True)
class Matrix:
    """A matrix in which the two differ.

    Parameters
    ----------
    places : tuple of Place
        One; for an embedding that is the LM head, too, both.
    tuned, base : TensorRef
    """

    places: tuple[Place, ...]
    tuned: TensorRef
    base: TensorRef

    @property
    def hops(self) -> set[int]:
        return {place.hop for place in self.places}

    @property
    def multiplied(self) -> Place | None:
        """Where it is multiplied with; None for a table that is only looked up in."""
        return next((place for place in self.places if not place.lookup), None)


@dataclass(frozen=True)
class Differences:
    """A tuned model against its base.

    Parameters
    ----------
    tuned, base : Model
    matrices : tuple of Matrix
        In the order of the chain.
    replaced : dict of int to dict of str to TensorRef
        By hop, the tuned model's norms, biases and whatever else is no matrix, by slot.
    own : frozenset of int
        Hops whose blocks cannot be told apart in this way; the tuned model keeps its own there.
    rest : int
        Bytes of what is replaced and of those blocks, as far as the base has them not.
    """

    tuned: Model
    base: Model
    matrices: tuple[Matrix, ...]
    replaced: dict[int, dict[str, TensorRef]]
    own: frozenset[int]
    rest: int


def find_differences(zoo: Zoo, tuned: Model, base: Model, names: tuple[str, str]) -> Differences:
    """Compare two models slot by slot; no tensor is read.

    Parameters
    ----------
    zoo : Zoo
    tuned, base : Model
    names : (str, str)
        What to call them in errors.

    Raises
    ------
    BlockzooError
        Where they are no two tunes of one architecture, or one is not a full model.
    UnservableError
        Where one cannot be run.
    """
    for model, name in zip((tuned, base), names, strict=True):
        if model.kind != "model" or model.compact:
            raise BlockzooError(
                f"{name} has adapters on its blocks, and differences are told between full models",
                hint="name a full fine-tune and the full model that it began as",
            )
    left, right = ([*zoo.chain(model).compiled.parts()] for model in (tuned, base))
    if [e for e, _, _ in left] != [e for e, _, _ in right] or len(tuned.chain) != len(left):
        raise BlockzooError(
            f"{names[0]} and {names[1]} do not compute the same way: widths, depths or settings "
            "differ",
            hint="`blockzoo diff` shows where",
        )
    matrices: list[Matrix] = []
    replaced: dict[int, dict[str, TensorRef]] = {}
    own: set[int] = set()
    last = len(left) - 1
    if dict(tuned.ties) != dict(base.ties):
        own |= {0, last}
    for number, ((executor, _, mine), (_, _, theirs)) in enumerate(zip(left, right, strict=True)):
        found: list[Matrix] = []
        others: dict[str, TensorRef] = {}
        for slot in executor.slots:
            a, b = mine.parameters[slot], theirs.parameters[slot]
            if _key(a) == _key(b):
                continue
            if isinstance(a, Fused) or isinstance(b, Fused) or a.shape != b.shape:
                own.add(number)
                continue
            path, _, parameter = slot.rpartition(".")
            leaf = executor.leaves[path]
            if parameter == "weight" and _is_matrix(leaf) and len(a.shape) == 2:
                lookup, transposed = isinstance(leaf, nn.Embedding), isinstance(leaf, Conv1D)
                found.append(Matrix((Place(number, path, lookup, transposed),), a, b))
            else:
                others[slot] = a
        matrices += found
        replaced[number] = others
    matrices = _tied([m for m in matrices if not m.hops & own])
    replaced = {number: others for number, others in replaced.items() if number not in own}
    kept = {ref.digest: ref for others in replaced.values() for ref in others.values()}
    for number in own:
        block = zoo.block(tuned.chain[number].block)
        kept |= {ref.digest: ref for ref in block.tensors.values()}
    there = {ref.digest for block in zoo.blocks_of(base).values() for ref in block.tensors.values()}
    rest = sum(ref.nbytes for digest, ref in kept.items() if digest not in there)
    return Differences(tuned, base, tuple(matrices), replaced, frozenset(own), rest)


def _is_matrix(leaf: nn.Module) -> bool:
    """Whether a difference may lie on a leaf; not on OPT's positions, which shift what is asked."""
    if isinstance(leaf, nn.Embedding):
        return type(leaf).forward is nn.Embedding.forward or hasattr(leaf, "embed_scale")
    return isinstance(leaf, (nn.Linear, Conv1D))


def _key(source: Source) -> str:
    return source.key if isinstance(source, Fused) else source.digest


def _tied(matrices: list[Matrix]) -> list[Matrix]:
    """Those of the same two tensors are one matrix with several places."""
    merged: dict[tuple[str, str], Matrix] = {}
    for matrix in matrices:
        key = matrix.tuned.digest, matrix.base.digest
        before = merged.get(key)
        places = (*before.places, *matrix.places) if before else matrix.places
        merged[key] = Matrix(places, matrix.tuned, matrix.base)
    return list(merged.values())
