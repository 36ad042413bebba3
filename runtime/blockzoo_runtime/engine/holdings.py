"""Who holds what in memory, as a table."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping

    from blockzoo_runtime.blocks.resident import ResidentTensors
    from blockzoo_runtime.kv.stats import KVStats
    from blockzoo_runtime.tenants import Tenants

_COLUMNS = (
    Column("model"),
    Column("digest", kind="digest"),
    Column("dtype"),
    Column("tensors", kind="int"),
    Column("bytes", "uses", kind="bytes"),
    Column("resident_bytes", "resident", kind="bytes"),
    Column("shared_bytes", "shared", kind="bytes"),
    Column("kv_bytes", "KV", kind="bytes"),
)


def holdings(
    tenants: Tenants, resident: ResidentTensors, kv: KVStats, kv_bytes: Mapping[str, int]
) -> Table:
    """Weights and KV by model; bytes that several models use count once in the note.

    Parameters
    ----------
    tenants : Tenants
    resident : ResidentTensors
    kv : KVStats
    kv_bytes : mapping of str to int
        What each model's running requests hold, by digest.
    """
    loaded = [tenant for _, tenant in tenants]
    users: dict[Any, int] = {}
    for tenant in loaded:
        for key in tenant.needs.nbytes:
            users[key] = users.get(key, 0) + 1
    rows = []
    for tenant in loaded:
        needs = tenant.needs.nbytes
        here = {key: size for key, size in needs.items() if key in resident}
        rows.append(
            {
                "model": ", ".join(tenants.names(tenant.digest)),
                "digest": tenant.digest,
                "dtype": str(tenant.dtype).removeprefix("torch."),
                "tensors": len(needs),
                "bytes": tenant.needs.total,
                "resident_bytes": sum(here.values()),
                "shared_bytes": sum(size for key, size in here.items() if users[key] > 1),
                "kv_bytes": kv_bytes.get(tenant.digest, 0),
            }
        )
    budget = resident.memory.budget
    limit = f" of {format_bytes(budget)}" if budget is not None else ""
    note = (
        f"{len(resident):,} tensors, {format_bytes(resident.nbytes)}{limit} resident on "
        f"{resident.device}; KV {format_bytes(kv.bytes_in_use)} in use, "
        f"{format_bytes(kv.bytes_cached)} cached"
    )
    return Table("memory", _COLUMNS, rows, note)
