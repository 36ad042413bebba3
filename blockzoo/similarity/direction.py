"""From distances between models to a tree with a root.

Distance has no direction. The root of a family is guessed by what speaks for it, in this order:
no edge leads from a grown vocabulary to the smaller one or from a dtype to a wider one; it is in
the middle of its family, where adapters on a model count for it, and at least three descend from
it (of a mere row of models the middle one is as likely a child); it came in first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from blockzoo.similarity.kinship import Kinship, Tensors
from blockzoo.tensors import DTYPE_BITS

_CLEAR = 3  # descendants in one step, adapters counted, that make the middle of a family its root
_ORDER = "the order of ingest"

_Near = dict[str, list[tuple[str, Kinship]]]


def shortest_trees(pairs: Iterable[Kinship]) -> list[list[Kinship]]:
    """The edges of the shortest tree of each family (Kruskal 1956)."""
    above: dict[str, str] = {}

    def top(digest: str) -> str:
        while (up := above.get(digest, digest)) != digest:
            above[digest] = above.get(up, up)
            digest = up
        return digest

    kept = []
    for pair in sorted(pairs, key=lambda pair: (pair.distance, pair.first, pair.second)):
        first, second = top(pair.first), top(pair.second)
        if first != second:
            above[second] = first
            kept.append(pair)
    trees: dict[str, list[Kinship]] = {}
    for pair in kept:
        trees.setdefault(top(pair.first), []).append(pair)
    return list(trees.values())


def directed(
    tree: Sequence[Kinship],
    tensors: Mapping[str, Tensors],
    weights: Mapping[str, int],
    since: Mapping[str, float],
) -> Iterator[tuple[str, Kinship, str]]:
    """Choose a tree's root and point its edges away from it.

    Parameters
    ----------
    tree : sequence of Kinship
        The edges of one tree.
    tensors : mapping of str to Tensors
        Each model's.
    weights : mapping of str to int
        How much each model counts in finding the middle.
    since : mapping of str to float
        When each came in.

    Yields
    ------
    (str, Kinship, str)
        The parent's digest, the edge, and what the direction was guessed from; parents first.
    """
    near: _Near = {}
    for edge in tree:
        near.setdefault(edge.first, []).append((edge.second, edge))
        near.setdefault(edge.second, []).append((edge.first, edge))
    backwards, far = _costs(near, tensors, weights)
    least = min(backwards.values())
    left = [digest for digest in near if backwards[digest] == least]
    evidence = "its vocabulary or dtype"
    if len(left) > 1:
        middle = min(left, key=lambda digest: (far[digest], digest))
        clear = len(near[middle]) + weights[middle] - 1 >= _CLEAR
        left, evidence = ([middle], "the middle of the family") if clear else (left, _ORDER)
    root = min(left, key=lambda digest: (since[digest], digest))
    for _, up, pair in _walk(root, near):
        if pair:
            yield up, pair, evidence


def _costs(
    near: _Near, tensors: Mapping[str, Tensors], weights: Mapping[str, int]
) -> tuple[dict[str, int], dict[str, float]]:
    """For each model as the root: edges that point backwards, and the sum of all paths to it.

    One walk up adds them for the first root, one walk down moves the root along each edge: the
    work is linear in the size of the tree.
    """
    order = _walk(next(iter(near)), near)
    first = order[0][0]
    below = {digest: weights[digest] for digest in near}
    backwards, far = {first: 0}, {first: 0.0}
    for digest, up, pair in reversed(order):
        if pair:
            below[up] += below[digest]
            far[first] += pair.distance * below[digest]
            backwards[first] += _backwards(tensors[up], tensors[digest])
    total = below[first]
    for digest, up, pair in order:
        if pair:
            a, b = tensors[up], tensors[digest]
            far[digest] = far[up] + pair.distance * (total - 2 * below[digest])
            backwards[digest] = backwards[up] - _backwards(a, b) + _backwards(b, a)
    return backwards, far


def _walk(root: str, near: _Near) -> list[tuple[str, str, Kinship | None]]:
    """Every model with its parent and the edge between, parents first."""
    order: list[tuple[str, str, Kinship | None]] = []
    waiting: list[tuple[str, str, Kinship | None]] = [(root, "", None)]
    while waiting:
        digest, up, pair = waiting.pop()
        order.append((digest, up, pair))
        waiting += [(other, digest, edge) for other, edge in near[digest] if other != up]
    return order


def _backwards(parent: Tensors, child: Tensors) -> bool:
    """Whether rows or bits that the parent lacks, or has lost, say that it is the child."""
    for name, (_, ref) in child.items():
        if name not in parent:
            continue
        other = parent[name][1]
        shorter = ref.shape[:1] < other.shape[:1] and ref.shape[1:] == other.shape[1:]
        if shorter or DTYPE_BITS[ref.dtype] > DTYPE_BITS[other.dtype]:
            return True
    return False
