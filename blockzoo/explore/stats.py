"""What a zoo holds and what that saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from blockzoo.explore.loading import Loading
from blockzoo.explore.table import Column, Table


@dataclass(frozen=True, repr=False)
class Stats:
    """Sizes are in bytes.

    Parameters
    ----------
    models, adapters, blocks, tensors : int
        Distinct ones that a name reaches.
    logical_bytes : int
        The sum of the original files of every named model.
    distinct_tensor_bytes : int
        Each distinct tensor once.
    stored_bytes : int
        All that the zoo keeps on disk, but for what may be deleted at any time.
    loading : dict of str to Loading
        What loading each named model costs.
    """

    models: int
    adapters: int
    blocks: int
    tensors: int
    logical_bytes: int
    distinct_tensor_bytes: int
    stored_bytes: int
    loading: Mapping[str, Loading] = field(default_factory=dict)

    @property
    def saving(self) -> float:
        """1 − stored/logical; negative for a zoo that takes more than its models."""
        return 1 - self.stored_bytes / self.logical_bytes if self.logical_bytes else 0.0

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"saving": self.saving}

    def table(self) -> Table:
        from blockzoo.explore.values import format_bytes, format_percent

        values: list[tuple[str, Any]] = [
            ("models", f"{self.models} and {self.adapters} adapters"),
            ("distinct blocks", f"{self.blocks:,}"),
            ("distinct tensors", f"{self.tensors:,}"),
            ("original files", format_bytes(self.logical_bytes)),
            ("distinct tensor bytes", format_bytes(self.distinct_tensor_bytes)),
            ("stored", format_bytes(self.stored_bytes)),
            ("saving", format_percent(self.saving)),
        ]
        rows = [{"what": what, "value": value} for what, value in values]
        return Table("", (Column("what"), Column("value", align="right")), rows)

    def loading_table(self) -> Table:
        """What loading each model that is kept packed costs, if any."""
        columns = (
            Column("name", "to load"),
            Column("read", "reads", kind="bytes"),
            Column("mapped", "as it lies", kind="bytes"),
            Column("decoded", "decodes", kind="bytes"),
        )
        packed = {name: cost for name, cost in self.loading.items() if cost.decoded}
        return Table("", columns, [{"name": n, **vars(cost)} for n, cost in sorted(packed.items())])

    def __repr__(self) -> str:
        loading = self.loading_table()
        return "\n\n".join(table.to_text() for table in (self.table(), loading) if table)

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()
