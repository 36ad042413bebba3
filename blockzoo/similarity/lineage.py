"""Which models descend from which: the family tree of a zoo, told from the weights.

A full model's place is found from sketches alone; neither its name nor its folder counts.
Models nearer to each other than `UNRELATED` are kin (`kinship`), and the tree of a family is the
shortest that joins it. An adapter's base was declared when it came in, a compact version's when
it was made; which way the other edges point is guessed, and marked as a guess (`direction`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from blockzoo.progress import Progress, silent
from blockzoo.records import Model
from blockzoo.similarity.direction import directed, shortest_trees
from blockzoo.similarity.kinship import kinships, own_tensors
from blockzoo.similarity.sketches import Sketches
from blockzoo.similarity.updates import update_distances
from blockzoo.store.objects import Objects
from blockzoo.store.reach import reach, roots
from blockzoo.store.refs import LATEST, Refs

#: the distance from which on two models are taken for strangers; between unrelated weights it
#: is 1.4, between those of which half the layers were replaced 1.0
UNRELATED = 0.8


@dataclass(frozen=True)
class Member:
    """A model in the tree.

    Parameters
    ----------
    digest : str
    names : tuple of str
        All of its names, sorted; ``:latest`` is left out.
    kind : {"model", "adapter"}
    family : str
        As in `records.Model`.
    bytes : int
        Of its original files.
    since : float
        When its first name was given, in seconds since 1970.
    """

    digest: str
    names: tuple[str, ...]
    kind: str
    family: str
    bytes: int
    since: float

    @property
    def name(self) -> str:
        return self.names[0] if self.names else self.digest[:12]


@dataclass(frozen=True)
class Edge:
    """From a model to one that descends from it.

    Parameters
    ----------
    parent, child : str
        Digests.
    evidence : str
        ``declared``, or what the direction was guessed from.
    distance : float or None
        See `kinship`; rows that were added are left out. Of a LoRA adapter, what its update is
        (`updates`); None for other adapters and compact versions.
    hops : mapping of str to float
        The same for each hop in which the two differ, in the chain's order.
    rows_added : int
        By which the child's vocabulary is longer.
    """

    parent: str
    child: str
    evidence: str
    distance: float | None = None
    hops: Mapping[str, float] = field(default_factory=dict)
    rows_added: int = 0

    @property
    def guessed(self) -> bool:
        return self.evidence != "declared"


@dataclass(frozen=True)
class Lineage:
    """The family tree of a zoo.

    Parameters
    ----------
    members : mapping of str to Member
        By digest.
    edges : mapping of str to Edge
        By the child's digest.
    """

    members: Mapping[str, Member]
    edges: Mapping[str, Edge]

    @cached_property
    def roots(self) -> Sequence[str]:
        """Those that descend from none; the largest family first."""
        heads = [digest for digest in self.members if digest not in self.edges]
        return sorted(heads, key=lambda d: (-len(list(self.walk(d))), self.members[d].name))

    @cached_property
    def _children(self) -> Mapping[str, Sequence[str]]:
        found: dict[str, list[str]] = {}
        for child, edge in self.edges.items():
            found.setdefault(edge.parent, []).append(child)
        return {p: sorted(cs, key=lambda c: self.members[c].name) for p, cs in found.items()}

    def children(self, digest: str) -> Sequence[str]:
        """The digests of those that descend from a model in one step, by name."""
        return self._children.get(digest, ())

    def parent(self, digest: str) -> str | None:
        edge = self.edges.get(digest)
        return edge.parent if edge else None

    def walk(self, root: str) -> Iterator[tuple[str, int]]:
        """A root and all that descend from it, each with its depth, parents first."""
        waiting = [(root, 0)]
        while waiting:
            digest, depth = waiting.pop()
            yield digest, depth
            waiting += [(child, depth + 1) for child in reversed(self.children(digest))]

    def to_json(self) -> list[dict[str, Any]]:
        """One dict a model, parents before children."""
        rows = []
        for root in self.roots:
            for digest, depth in self.walk(root):
                member, edge = self.members[digest], self.edges.get(digest)
                rows.append(
                    {
                        "name": member.name,
                        "names": list(member.names),
                        "digest": digest,
                        "kind": member.kind,
                        "depth": depth,
                        "root": self.members[root].name,
                        "parent": self.members[edge.parent].name if edge else None,
                        "parent_digest": edge.parent if edge else None,
                        "evidence": edge.evidence if edge else None,
                        "guessed": edge.guessed if edge else None,
                        "distance": edge.distance if edge else None,
                        "rows_added": edge.rows_added if edge else None,
                        "hops": dict(edge.hops) if edge else {},
                    }
                )
        return rows


def families(
    objects: Objects, refs: Refs, *, progress: Progress = silent, sketches: Sketches | None = None
) -> Lineage:
    """Find the family tree of all named models.

    Parameters
    ----------
    objects, refs
        A zoo's.
    progress : Progress
        Of the sketches that have to be made.
    sketches : Sketches, optional
        By default those in the zoo's ``cache/``.

    Raises
    ------
    DamagedError
        Where a record or a tensor cannot be read.
    """
    named = roots(refs)
    found = reach(objects, named)
    for error in found.unread.values():
        raise error
    since: dict[str, float] = {}
    for ref in refs.all():
        for target in ref.tags.values():
            since[target.digest] = min(target.time, since.get(target.digest, math.inf))
    members = {}
    for digest, model in found.models.items():
        names = tuple(sorted(name.removesuffix(f":{LATEST}") for name in named.get(digest, ())))
        members[digest] = Member(
            digest, names, model.kind, model.family, model.nbytes, since.get(digest, math.inf)
        )
    tensors = {
        digest: own_tensors(model, found.blocks)
        for digest, model in found.models.items()
        if model.kind == "model" and not model.compact  # whose blocks are its base's
    }
    sketches = sketches or Sketches(objects)
    adapters = [
        (model, found.models[model.base])
        for model in found.models.values()
        if model.kind == "adapter" and model.base
    ]
    moved = update_distances(sketches, adapters, found.blocks, progress)
    edges = {
        adapter.digest: Edge(
            base.digest, adapter.digest, "declared", *moved.get(adapter.digest, (None, {}))
        )
        for adapter, base in adapters
    }
    edges |= {
        digest: Edge(base, digest, "declared")
        for digest, model in found.models.items()
        if (base := _compact_base(objects, model)) in members
    }
    pairs = kinships(sketches, tensors, UNRELATED, progress)
    weights = dict.fromkeys(members, 1)
    for edge in edges.values():
        weights[edge.parent] += 1  # a base with adapters on it counts for more
    age = {digest: member.since for digest, member in members.items()}
    for tree in shortest_trees(pairs):
        for parent, pair, evidence in directed(tree, tensors, weights, age):
            turned = pair if parent == pair.first else pair.turned()
            edges[turned.second] = Edge(
                parent, turned.second, evidence, turned.distance, turned.hops, turned.rows_added
            )
    return Lineage(members, edges)


def _compact_base(objects: Objects, model: Model) -> str:
    """The digest of the model whose blocks a compact version has; empty for any other."""
    if not model.compact or not model.evidence:
        return ""
    swaps = objects.equivalence(model.evidence)["swaps"]
    return next((str(swap["donor"]) for swap in swaps if swap.get("adapters")), "")
