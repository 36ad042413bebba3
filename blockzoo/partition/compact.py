"""Adapter blocks of the type ``compact``: what they keep of a weight's difference from the base's.

The spec's ``modules`` say how each difference is kept, by the leaf that it is on::

    {"mlp.up_proj": {"method": "bits", "bits": 2, "columns": 1024},
     "self_attn.v_proj": {"method": "lowrank", "rank": 8, "alpha": 8}}

``bits``: the tensors ``{path}.codes`` (U8, see `execution.packing`) and ``{path}.scale``, one a
row. ``lowrank``: a LoRA's. Rows are outputs, also where the base keeps its weight as (in, out)
and the facts say ``transposed``; an embedding's rows are its tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.partition.adapter_shapes import check_module
from blockzoo.partition.checks import FLOATS
from blockzoo.partition.family import Family
from blockzoo.records import Block, Hop
from blockzoo.tensors import TensorRef

TYPE = "compact"

#: how many bits a code may have
WIDTHS = (1, 2, 4)

_RUN = 16  # columns that a run is a multiple of: so that packed products take whole groups


def run_length(columns: int, bits: int) -> int:
    """The columns of a run, which are the bytes of a row."""
    return -(-columns * bits // (8 * _RUN)) * _RUN


def compact_not_served(
    hop: Hop, adapter: Block, base: Mapping[str, TensorRef], family: Family
) -> str | None:
    """Why a compact adapter cannot be laid on a hop; None where it can.

    Parameters
    ----------
    hop : Hop
    adapter : Block
    base : mapping of str to TensorRef
        `Model.bound`.
    family : Family
        The base's.
    """
    modules: Mapping[str, Mapping[str, Any]] = adapter.spec.get("modules", {})
    replaces: Mapping[str, str] = adapter.spec.get("replaces", {})
    if fused := [name for name in (*modules, *replaces.values()) if "experts" in name.split(".")]:
        return f"it changes {fused[0]}, which is run fused with the other experts"
    used = set(replaces)
    for path, facts in modules.items():
        weight = _of_base(f"{hop.prefix}{path}.weight", hop, base, family)
        if weight is None:
            return f"it changes {hop.prefix}{path}, which has no weight in the base"
        check = _METHODS.get(facts.get("method", ""))
        if check is None:
            return f"differences kept by the method {facts.get('method')!r} are not known"
        parts = {
            name.removeprefix(f"{path}."): ref
            for name, ref in adapter.tensors.items()
            if name.startswith(f"{path}.") and name not in replaces
        }
        if reason := check(f"{hop.prefix}{path}", facts, parts, weight, family):
            return reason
        used |= {f"{path}.{part}" for part in parts}
    for local, name in replaces.items():
        whole = _of_base(f"{hop.prefix}{name}", hop, base, family)
        own = adapter.tensors.get(local)
        if own is None or (whole is not None and own.shape != whole.shape):
            found = "nothing" if own is None else list(own.shape)
            return f"it replaces {hop.prefix}{name} by {found}, which does not fit the base's"
    if unused := sorted(adapter.tensors.keys() - used):
        return f"its tensor {unused[0]} belongs to no module"
    return None


def _of_base(
    name: str, hop: Hop, base: Mapping[str, TensorRef], family: Family
) -> TensorRef | None:
    """A tensor by the name in transformers' model, which a checkpoint may call otherwise."""
    local = name.removeprefix(hop.prefix)
    module, _, rest = local.partition(".")
    names = [name]
    for half in family.sublayers:
        if module in half.ops:
            names += [f"{hop.prefix}{stored}{rest}" for stored in half.stored]
    return next((base[name] for name in names if name in base), None)


def _bits(
    module: str,
    facts: Mapping[str, Any],
    parts: Mapping[str, TensorRef],
    weight: TensorRef,
    family: Family,
) -> str | None:
    bits = facts.get("bits")
    if bits not in WIDTHS:
        return f"{module} is kept in codes of {bits!r} bits, not of {', '.join(map(str, WIDTHS))}"
    if len(weight.shape) != 2:
        return f"{module} is no matrix in the base"
    rows, columns = weight.shape[::-1] if facts.get("transposed") else weight.shape
    if facts.get("columns") != columns:
        return f"{module} is kept with {facts.get('columns')!r} columns, the base's has {columns}"
    wanted = {"codes": (rows, run_length(columns, bits)), "scale": (rows,)}
    for part in sorted(wanted.keys() | parts.keys()):
        if part not in wanted:
            return f"its tensor {module}.{part} has no place in a difference in codes"
        found = parts.get(part)
        if found is None:
            return f"it has no {module}.{part}"
        if found.shape != wanted[part]:
            return (
                f"its tensor {module}.{part} is {list(found.shape)}, "
                f"{list(wanted[part])} would fit the base's weight"
            )
        if not (found.dtype == "U8" if part == "codes" else found.dtype in FLOATS):
            return f"its tensor {module}.{part} is {found.dtype}"
    return None


def _lowrank(
    module: str,
    facts: Mapping[str, Any],
    parts: Mapping[str, TensorRef],
    weight: TensorRef,
    family: Family,
) -> str | None:
    if not facts.get("rank") or facts.get("alpha") != facts["rank"]:
        return f"{module} has the rank {facts.get('rank')!r} and alpha {facts.get('alpha')!r}"
    try:
        check_module(module, facts, parts, weight.shape, family.name, {})
    except SourceError as error:
        return error.message
    if strange := [part for part in parts if not part.startswith("lora_")]:
        return f"its tensor {module}.{strange[0]} has no place in a difference of low rank"
    return next(_packed(module, parts), None)


def _packed(module: str, parts: Mapping[str, TensorRef]) -> Iterator[str]:
    for part, ref in parts.items():
        if ref.dtype not in FLOATS:
            yield f"its tensor {module}.{part} is {ref.dtype}, not floating point"


_METHODS = {"bits": _bits, "lowrank": _lowrank}
