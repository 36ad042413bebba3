"""The second moments of what a chain's matrices are multiplied with, on a text, hop by hop."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from blockzoo.compact.differences import Matrix
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.passage import Batch, Passage


def grams(
    chain: RunnableChain, matrices: Sequence[Matrix], batches: Sequence[Batch]
) -> Iterator[tuple[Matrix, torch.Tensor]]:
    """Each matrix and the mean outer product of its inputs, in the order of the chain.

    Parameters
    ----------
    chain : RunnableChain
        The tuned model's.
    matrices : sequence of Matrix
        A table that is only looked up in comes first, with the identity.
    batches : sequence of Batch

    Yields
    ------
    (Matrix, torch.Tensor)
        (in, in) float32.
    """
    hops = [*chain.compiled.parts()]
    passage = Passage(chain, batches)
    for number, (executor, _, _) in enumerate(hops):
        here: dict[str, list[Matrix]] = {}
        for matrix in matrices:
            place = matrix.multiplied
            if place is not None and place.hop == number:
                here.setdefault(place.path, []).append(matrix)
            elif place is None and matrix.places[0].hop == number:
                yield matrix, torch.eye(matrix.tuned.shape[1])
        leaves = {path: executor.leaves[path] for path in here}
        head = number == len(hops) - 1
        with _watched(leaves, () if head else batches) as sums:
            if head:
                _heads(passage)
            elif number:
                passage.step()
        tokens = sum(int(batch.mask.sum()) for batch in batches)
        for path, some in here.items():
            for matrix in some:
                yield matrix, sums[path] / tokens


def _heads(passage: Passage) -> None:
    for number in range(len(passage.batches)):
        for piece in torch.split(passage.tokens(number), 256):
            passage.logits(piece)


@contextmanager
def _watched(
    leaves: dict[str, torch.nn.Module], batches: Sequence[Batch]
) -> Iterator[dict[str, torch.Tensor]]:
    """Sums of outer products of what leaves are called with inside.

    The padding of `batches` is left out; a head, which is given tokens only, has none.
    """
    sums: dict[str, torch.Tensor] = {}
    calls = dict.fromkeys(leaves, 0)

    def watch(path: str) -> Any:
        def hook(_: torch.nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            rows = given[0].reshape(-1, given[0].shape[-1]).float()
            if batches:
                rows = rows[batches[calls[path]].mask.bool().flatten()]
            calls[path] += 1
            product = rows.T @ rows
            sums[path] = sums[path] + product if path in sums else product

        return hook

    hooks = [leaf.register_forward_pre_hook(watch(path)) for path, leaf in leaves.items()]
    try:
        yield sums
    finally:
        for hook in hooks:
            hook.remove()
