"""Where two models are the same and how far apart the rest is, by layer and projection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import format_bytes
from blockzoo.records import Block, Model
from blockzoo.similarity.rank import difference_rank
from blockzoo.similarity.weights import compare
from blockzoo.store.objects import Objects
from blockzoo.tensors import TensorRef

_COLUMNS = (
    Column("tensor"),
    Column("hop"),
    Column("state"),
    Column("distance", "relative distance", kind="ratio"),
    Column("bits_changed", "bits changed", kind="percent"),
    Column("rows_added", "rows added", kind="int"),
    Column("bytes", kind="bytes"),
)
_RANKS = (
    Column("rank", kind="int"),
    Column("full_rank", "of", kind="int"),
    Column("effective_rank", "effective rank", kind="float"),
)


def diff(
    objects: Objects,
    first: tuple[str, Model, Mapping[str, Block]],
    second: tuple[str, Model, Mapping[str, Block]],
    *,
    rank: bool = False,
) -> Table:
    """Compare two models tensor by tensor.

    Parameters
    ----------
    objects : Objects
    first, second : (name, Model, its blocks by digest)
    rank : bool
        Decompose the difference of every matrix, which takes longer: its rank above what
        rounding gives by itself (a merged LoRA's is the LoRA's), and its effective rank.

    Returns
    -------
    Table
        A row for each tensor of either model. ``state`` is ``identical`` (same digest),
        ``changed``, ``grown`` or ``shrunk`` (the shared rows are compared), ``reshaped``,
        ``only in …``.
        ``distance`` is ‖a−b‖/‖a‖ in the Frobenius norm.
    """
    left, right = tensors_of(*first[1:]), tensors_of(*second[1:])
    rows = []
    for name in [*left, *(name for name in right if name not in left)]:
        a, b = left.get(name), right.get(name)
        hop, ref = a or b or ("", None)
        assert ref is not None
        row: dict[str, Any] = {"tensor": name, "hop": hop, "bytes": ref.nbytes}
        if a is None or b is None:
            row["state"] = f"only in {first[0] if a else second[0]}"
        elif a[1].digest == b[1].digest:
            row |= {"state": "identical", "distance": 0.0, "bits_changed": 0.0}
        else:
            row |= _compare(objects, a[1], b[1])
            row |= _rank(objects, a[1], b[1]) if rank else {}
        rows.append(row)
    same = sum(row["bytes"] for row in rows if row["state"] == "identical")
    total = sum(row["bytes"] for row in rows)
    note = f"{format_bytes(same)} of {format_bytes(total)} identical"
    if any(row.get("rank_at_least") for row in rows):
        note += "; some ranks are lower bounds"
    columns = (*_COLUMNS, *_RANKS) if rank else _COLUMNS
    return Table(f"{first[0]} → {second[0]}", columns, rows, note)


def tensors_of(model: Model, blocks: Mapping[str, Block]) -> dict[str, tuple[str, TensorRef]]:
    """Every tensor of a chain by its full name, with its hop's name; adapters' come with theirs."""
    found: dict[str, tuple[str, TensorRef]] = {}
    for hop in model.chain:
        for digest in (hop.block, *hop.adapters):
            for name, ref in blocks[digest].tensors.items() if digest else ():
                found[hop.prefix + name] = hop.name, ref
    return found


def _compare(objects: Objects, a: TensorRef, b: TensorRef) -> dict[str, Any]:
    try:
        found = compare(objects.tensor(a.digest), objects.tensor(b.digest))
    except TypeError:  # elements smaller than a byte
        return {"state": "changed"}
    if found is None:
        return {"state": "reshaped"}
    row: dict[str, Any] = {"state": "changed", "distance": found.relative}
    if a.dtype == b.dtype:
        row["bits_changed"] = found.bits_changed
    if found.rows_added:
        state = "grown" if found.rows_added > 0 else "shrunk"
        row |= {"state": state, "rows_added": found.rows_added}
    return row


def _rank(objects: Objects, a: TensorRef, b: TensorRef) -> dict[str, Any]:
    found = difference_rank(objects.tensor(a.digest), objects.tensor(b.digest))
    if found is None:
        return {}
    return {
        "rank": found.numerical,
        "rank_at_least": found.at_least,
        "effective_rank": found.effective,
        "full_rank": found.full,
    }
