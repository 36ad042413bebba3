"""Whether adapters can be served on their base, and if not, why."""

from __future__ import annotations

from collections.abc import Mapping

from blockzoo.partition.adapter_config import not_applied
from blockzoo.partition.checks import FLOATS
from blockzoo.partition.compact import TYPE, compact_not_served
from blockzoo.partition.family import Family
from blockzoo.records import Block, Hop, Model


def adapter_not_served(model: Model, blocks: Mapping[str, Block], family: Family) -> str | None:
    """What keeps a chain's adapters from being served, given that its own blocks can be.

    Parameters
    ----------
    model : Model
    blocks : mapping of str to Block
        The base's and the adapters', by digest.
    family : Family
        The base's.
    """
    base = model.bound(blocks)
    for hop in model.chain:
        taken: set[str] = set()
        for digest in hop.adapters:
            modules = blocks[digest].spec.get("modules", {}).keys()
            if twice := sorted(taken & modules):
                return f"two adapters are on {hop.prefix}{twice[0]}"
            taken |= modules
            if blocks[digest].spec["type"] == TYPE:
                reason = compact_not_served(hop, blocks[digest], base, family)
            else:
                reason = _of_block(hop, blocks[digest], blocks[hop.block], family)
            if reason is not None:
                return reason
    return None


def _of_block(hop: Hop, adapter: Block, base: Block, family: Family) -> str | None:
    spec = adapter.spec
    reason = not_applied(spec["type"], spec["config"])
    if reason is not None:
        return reason
    modules = spec.get("modules", {})
    if spec.get("untargeted"):
        return f"its config does not name {spec['untargeted'][0]}, of which it has tensors"
    stored = tuple(start for half in family.sublayers for start in half.stored)
    fused = [n for n in (*modules, *spec.get("replaces", {})) if stored and n.startswith(stored)]
    if fused:
        return f"it changes {fused[0]}, which is run fused with the other experts"
    if spec["config"].get("ensure_weight_tying") and not hop.prefix and modules:
        return "its option ensure_weight_tying is not applied to adapted embeddings"
    for name, ref in adapter.tensors.items():
        if ref.dtype not in FLOATS:
            return f"its tensor {name} is {ref.dtype}, not floating point"
    # PEFT loads these into the base's own parameter, so that a tied head would change with it
    tokens = f"{family.root}{family.tokens}"
    own = adapter.tensors.get(f"{tokens}.base_layer.weight")
    theirs = base.tensors.get(f"{tokens}.weight")
    if own is not None and (theirs is None or own.digest != theirs.digest):
        return f"it was trained on other values of {tokens}.weight than the base has"
    return None
