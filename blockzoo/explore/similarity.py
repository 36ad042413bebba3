"""Two models' blocks compared: by their weights, and by what they do to a text.

Weights screen: the largest relative distance over a block's tensors, from sketches for every
pair and exactly for corresponding ones. Activations rank. Neither decides whether one block may
stand in for another: that is `blockzoo certify`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from blockzoo.errors import SourceError, UsageError
from blockzoo.explore.dendrogram import Drawing
from blockzoo.explore.heatmap import heatmap
from blockzoo.explore.table import Column, Table
from blockzoo.progress import Progress, silent
from blockzoo.records import Block, Hop, Model
from blockzoo.similarity.ranking import block_sketches, comparable, exact_likeness, likeness
from blockzoo.similarity.sketches import Sketches

if TYPE_CHECKING:
    from blockzoo.execution.passage import Batch
    from blockzoo.similarity.activations import Activations
    from blockzoo.zoo import Zoo

Measure = Literal["weights", "activations"]

#: tokens of the calibration text that are run
TOKENS = 8192
_FEWEST_TOKENS = 64
#: the largest distance of weights that is worth certifying; see ``docs/EQUIVALENCE.md``
SCREEN = 0.1
_FAR = 1.5  # a distance of weights beyond that of unrelated blocks (√2)
_WEIGHTS = (
    Column("hop"),
    Column("kind"),
    Column("distance", "largest distance", kind="ratio"),
    Column("tensor", "in tensor"),
    Column("mean", "mean distance", kind="ratio"),
)
_ACTIVATIONS = (
    Column("error", "output error", kind="ratio"),
    Column("error_by_dimension", "by dimension", kind="ratio"),
    Column("drift", kind="ratio"),
    Column("cka", "CKA", kind="ratio"),
)


@dataclass(frozen=True, repr=False)
class Similarity:
    """What `similarity` found.

    Parameters
    ----------
    first, second : str
        The models' names.
    table : Table
        A row for each hop that both have.
    labels : tuple of str
        ``NAME@HOP`` of every block, the first model's first.
    count : int
        How many of them are the first model's.
    weights : numpy.ndarray
        float64, (labels, labels): largest relative distance over the tensors, from sketches;
        infinite where two cannot be compared.
    activations : Activations or None
    """

    first: str
    second: str
    table: Table
    labels: tuple[str, ...]
    count: int
    weights: NDArray[np.float64]
    activations: Activations | None

    def to_json(self) -> dict[str, Any]:
        """The rows, the clusters, and how much text they were told from."""
        found: dict[str, Any] = {"first": self.first, "second": self.second}
        found |= {"rows": self.table.to_json(), "clusters": self.clusters().to_json()}
        if self.activations is not None:
            told = self.activations
            found |= {"tokens": told.tokens, "sampled": told.sampled, "few": told.few}
        return found

    def matrix(self, measure: Measure | None = None) -> tuple[list[str], int, NDArray[np.float64]]:
        """Distances of all blocks from all: labels, how many are the first model's, distances.

        By activations it is 1 − CKA, and heads are not in it.
        """
        if self._measure(measure) == "weights":
            return list(self.labels), self.count, np.maximum(self.weights, self.weights.T)
        told = self.activations
        assert told is not None
        labels = [f"{self.first}@{hop}" for hop in told.first]
        labels += [f"{self.second}@{hop}" for hop in told.second]
        return labels, len(told.first), 1 - told.cka

    def clusters(self, within: float = 0.1, measure: Measure | None = None) -> Table:
        """Blocks that are near each other, by scikit-learn's agglomerative clustering.

        Parameters
        ----------
        within : float
            Mean distance between two clusters up to which they are one.
        measure : {"weights", "activations"}, optional
            Activations where there are any.

        Returns
        -------
        Table
            Clusters of more than one block, the largest first.
        """
        from sklearn.cluster import AgglomerativeClustering

        labels, _, distances = self.matrix(measure)
        near = np.where(np.isfinite(distances), np.clip(distances, 0, _FAR), _FAR)
        np.fill_diagonal(near, 0)
        found = AgglomerativeClustering(
            n_clusters=None, distance_threshold=within, metric="precomputed", linkage="average"
        ).fit_predict(near)
        members: dict[int, list[int]] = {}
        for place, cluster in enumerate(found.tolist()):
            members.setdefault(cluster, []).append(place)
        rows = [
            {
                "blocks": len(places),
                "widest": float(near[np.ix_(places, places)].max()),
                "members": [labels[place] for place in places],
            }
            for places in members.values()
            if len(places) > 1
        ]
        rows.sort(key=lambda row: (-len(row["members"]), row["members"]))  # type: ignore[arg-type]
        columns = (
            Column("blocks", kind="int"),
            Column("widest", "largest distance", kind="ratio"),
            Column("members"),
        )
        title = f"clusters by {self._measure(measure)}, mean distance up to {within:g}"
        return Table(title, columns, rows)

    def candidates(self, within: float = SCREEN) -> Table:
        """The hops at which the second model's block is worth certifying in the first.

        Weights screen and activations rank: what is farther than `within` in any tensor is left
        out, and the rest is ordered by its drift; without a text, by its mean distance.
        """
        key = "mean" if self.activations is None else "drift"
        rows = [
            row
            for row in self.table
            if row["block"] != row["other"] and 0 <= (row.get("distance") or math.inf) <= within
        ]
        rows.sort(key=lambda row: math.inf if row.get(key) is None else row[key])
        title = f"blocks of {self.second} that may stand in for those of {self.first}"
        return Table(title, self.table.columns, rows, f"within {within:g}, ordered by {key}")

    def heatmap(self, measure: Measure | None = None) -> Drawing:
        """Every hop of the first model with every hop of the second, as SVG."""
        labels, count, distances = self.matrix(measure)
        names = [label.partition("@")[2] for label in labels]
        corner = distances[:count, count:]
        title = f"{self.first} (rows) and {self.second} by {self._measure(measure)}"
        if self._measure(measure) == "weights":
            key = ("distance 1", "0")
            return heatmap(title, names[:count], names[count:], -corner, low=-1, high=0, key=key)
        return heatmap(
            title, names[:count], names[count:], 1 - corner, low=0, high=1, key=("CKA 0", "1")
        )

    def _measure(self, measure: Measure | None) -> Measure:
        if measure == "activations" and self.activations is None:
            raise UsageError("no text was given, so there are no activations", hint="give text=")
        return measure or ("weights" if self.activations is None else "activations")

    def __repr__(self) -> str:
        return self.table.to_text()

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def similarity(
    zoo: Zoo,
    first: str,
    second: str,
    text: str | Path | None = None,
    *,
    tokens: int = TOKENS,
    progress: Progress = silent,
) -> Similarity:
    """Compare two models block by block.

    Parameters
    ----------
    zoo : Zoo
    first, second : str
        Names.
    text : path, optional
        A calibration text; then both models are run on it, and blocks are compared by what
        they do, too.
    tokens : int
        Of the text at most.
    progress : Progress
        Of the sketches that have to be made, in bytes; then of the hops.

    Raises
    ------
    SourceError
        Where the text cannot be used.
    UsageError
        Where the models read text as different tokens.
    UnservableError
        Where one of them cannot be run.
    """
    models = [zoo.model(name) for name in (first, second)]
    blocks = {d: b for model in models for d, b in zoo.blocks_of(model).items()}
    chains = [[(hop, blocks[hop.block]) for hop in m.chain if hop.block] for m in models]
    told = _activations(zoo, models, text, tokens, progress) if text is not None else None
    rows = _rows(zoo, chains, told)
    notes = []
    if any(row["adapters"] for row in rows):
        notes.append("where an adapter is on a hop, distances are those of the blocks under it")
    if told is not None:
        notes.append(f"{told.tokens:,} tokens, CKA from {told.sampled}")
        if told.few:
            notes.append("too few tokens: CKA is off by more than a few hundredths")
    columns = (*_WEIGHTS, *_ACTIVATIONS) if told is not None else _WEIGHTS
    table = Table(f"{first} and {second}", columns, rows, "; ".join(notes))
    both = [*chains[0], *chains[1]]
    names = [first] * len(chains[0]) + [second] * len(chains[1])
    labels = tuple(f"{name}@{hop.name}" for name, (hop, _) in zip(names, both, strict=True))
    weights = _distances(zoo, [block for _, block in both], progress)
    return Similarity(first, second, table, labels, len(chains[0]), weights, told)


Chain = Sequence[tuple[Hop, Block]]


def _rows(zoo: Zoo, chains: Sequence[Chain], told: Activations | None) -> list[dict[str, Any]]:
    others = {hop.name: (hop, block) for hop, block in chains[1]}
    by_hop = {found.hop: found for found in told.hops} if told is not None else {}
    rows = []
    for hop, block in chains[0]:
        if hop.name not in others:
            continue
        other_hop, other = others[hop.name]
        row: dict[str, Any] = {"hop": hop.name, "kind": hop.kind}
        row |= {"block": block.digest, "other": other.digest}
        row["adapters"] = hop.adapters != other_hop.adapters
        if comparable(block, other):
            like = exact_likeness(zoo.objects, block, other)
            row |= {"distance": _finite(like.largest), "tensor": like.tensor}
            row["mean"] = _finite(like.mean)
        if (found := by_hop.get(hop.name)) is not None:
            row |= {"error": _finite(found.error), "cka": found.cka}
            row["error_by_dimension"] = _finite(found.error_by_dimension)
            row["drift"] = _finite(found.drift)
        rows.append(row)
    return rows


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _distances(zoo: Zoo, blocks: Sequence[Block], progress: Progress) -> NDArray[np.float64]:
    """The largest relative distance over the tensors of each two blocks, from sketches."""
    sketches = block_sketches(Sketches(zoo.objects), blocks, progress)
    found = np.full((len(blocks), len(blocks)), np.inf)
    for i, block in enumerate(blocks):
        for j, other in enumerate(blocks):
            if block.digest == other.digest:
                found[i, j] = 0.0
            elif comparable(block, other):
                found[i, j] = likeness(block, other, sketches).largest
    return found


def _activations(
    zoo: Zoo, models: Sequence[Model], text: str | Path, tokens: int, progress: Progress
) -> Activations:
    from blockzoo.similarity.activations import compare_activations

    batches = _tokens(zoo, models, text, tokens)
    pair = []
    for model in models:
        chain = zoo.chain(model)
        names = [hop.name for hop in model.chain[1:-1]][: len(chain.compiled.hops)]
        pair.append((chain, names))
    return compare_activations(pair[0], pair[1], batches, progress)


def _tokens(zoo: Zoo, models: Sequence[Model], path: str | Path, most: int) -> list[Batch]:
    """The calibration text as tokens, which must be the same for both models."""
    from blockzoo.execution.passage import batches
    from blockzoo.execution.texts import read_text

    text = read_text(path)
    read = [text.tokens(zoo.tokenizer(model), most) for model in models]
    count = sum(map(len, read[0]))
    if count < _FEWEST_TOKENS:
        raise SourceError(
            f"{path} is too small: {count} tokens, of which no likeness can be told",
            hint=f"give at least {_FEWEST_TOKENS}; some thousands are better",
        )
    if read[0] != read[1]:
        raise UsageError(
            "the two models read this text as different tokens, so their activations cannot be "
            "compared token by token",
            hint="compare their weights, without a text",
        )
    return batches(list(enumerate(read[0])))
