"""Two models' blocks compared: by their weights, and by what they do to a text.

Weights screen: the largest relative distance over a block's tensors, from sketches for every
pair and exactly for corresponding ones. Activations rank. Neither decides whether one block may
stand in for another: that is `blockzoo certify`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from blockzoo.errors import UsageError
from blockzoo.explore.dendrogram import Drawing
from blockzoo.explore.heatmap import heatmap
from blockzoo.explore.merging import merging
from blockzoo.explore.table import Column, Table

if TYPE_CHECKING:
    from blockzoo.similarity.activations import Activations

Measure = Literal["weights", "activations"]

#: the largest distance of weights, and the largest drift, that are worth certifying: on
#: ``../shared/family`` every swap that grade B allows is within both (`benchmarks/equivalence.py`)
SCREEN, DRIFT = 0.1, 0.05
_FAR = 1.5  # a distance of weights beyond that of unrelated blocks (√2)
#: the columns of a comparison, and those that a text adds
WEIGHTS = (
    Column("hop"),
    Column("kind"),
    Column("distance", "largest distance", kind="ratio"),
    Column("tensor", "in tensor"),
    Column("mean", "mean distance", kind="ratio"),
)
ACTIVATIONS = (
    Column("error", "output error", kind="ratio"),
    Column("error_by_dimension", "by dimension", kind="ratio"),
    Column("drift", kind="ratio"),
    Column("cka", "CKA", kind="ratio"),
)


@dataclass(frozen=True, repr=False)
class Similarity:
    """What `compare.similarity` found.

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
        labels, near, found = self._agglomerated(measure, within)
        members: dict[int, list[int]] = {}
        for place, cluster in enumerate(found.labels_.tolist()):
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

    def dendrogram(self, measure: Measure | None = None) -> Drawing:
        """How the blocks of both models merge as more distance is allowed, as SVG."""
        labels, _, found = self._agglomerated(measure, 0.0)
        title = f"{self.first} and {self.second} by {self._measure(measure)}"
        return merging(title, labels, found.children_, found.distances_)

    def _agglomerated(
        self, measure: Measure | None, within: float
    ) -> tuple[list[str], NDArray[np.float64], Any]:
        """Labels, finite distances, and scikit-learn's clustering of them."""
        from sklearn.cluster import AgglomerativeClustering

        labels, _, distances = self.matrix(measure)
        near = np.where(np.isfinite(distances), np.clip(distances, 0, _FAR), _FAR)
        np.fill_diagonal(near, 0)
        clustering = AgglomerativeClustering(
            n_clusters=None, distance_threshold=within, metric="precomputed", linkage="average"
        )
        return labels, near, clustering.fit(near)

    def candidates(self, within: float | None = None) -> Table:
        """The hops at which the second model's block is worth certifying in the first.

        Parameters
        ----------
        within : float, optional
            Of activations, the largest drift (`DRIFT` by default); without a text, the largest
            relative distance in any tensor (`SCREEN`).

        Returns
        -------
        Table
            The likeliest first: by drift, which foretells the loss best; without a text by mean
            distance.
        """
        told = self.activations is not None
        screen, order, limit = ("drift", "drift", DRIFT) if told else ("distance", "mean", SCREEN)
        limit = limit if within is None else within
        rows = [
            row
            for row in self.table
            if row["block"] != row["other"] and row.get(screen) is not None and row[screen] <= limit
        ]
        rows.sort(key=lambda row: float(row[order]))
        title = f"blocks of {self.second} that may stand in for those of {self.first}"
        return Table(title, self.table.columns, rows, f"{screen} up to {limit:g}")

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
