"""Which adapter types attach to leaves, and how an adapter block is laid on a hop."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from torch import nn

from blockzoo.errors import UnservableError
from blockzoo.execution.adapters.compact import attach_compact
from blockzoo.execution.adapters.ia3 import attach_ia3
from blockzoo.execution.adapters.leaf import Target
from blockzoo.execution.adapters.lora import attach_lora
from blockzoo.execution.binding import Attachment, Source
from blockzoo.partition.compact import TYPE
from blockzoo.records import Block


class Attach(Protocol):
    """Makes the attachment of one adapter type for one leaf."""

    def __call__(self, target: Target) -> Attachment: ...


#: types that compute something on leaves
ATTACH: dict[str, Attach] = {"lora": attach_lora, "ia3": attach_ia3, TYPE: attach_compact}

#: types that only put tensors in place of the base's
REPLACE = frozenset({"ln_tuning"})

#: types whose tensors are virtual tokens; see `virtual`
VIRTUAL = frozenset({"prefix_tuning", "prompt_tuning", "p_tuning"})


def lay_on(
    adapter: Block,
    leaves: Mapping[str, nn.Module],
    parameters: dict[str, Source],
    attachments: dict[str, tuple[nn.Module, Attachment]],
) -> None:
    """Apply an adapter block to what a hop is bound to.

    Parameters
    ----------
    adapter : Block
        Of kind ``adapter``, its names local to the hop.
    leaves : mapping
        The executor's.
    parameters : dict
        What the executor's slots are bound to; replaced tensors are exchanged here.
    attachments : dict
        By leaf name; extended here.

    Raises
    ------
    UnservableError
        Where the type, or a module it names, cannot be adapted exactly.
    """
    spec = adapter.spec
    kind = spec.get("type", "")
    for local, name in spec.get("replaces", {}).items():
        if name not in parameters:
            raise UnservableError(
                f"the adapter brings its own {name}, which the base model does not compute with"
            )
        parameters[name] = adapter.tensors[local]
    if kind in REPLACE or kind in VIRTUAL:
        return
    modules: Mapping[str, Mapping[str, Any]] = spec.get("modules", {})
    if modules and kind not in ATTACH:
        raise UnservableError(f"adapters of the type {kind!r} are kept, but cannot be run")
    for path, facts in modules.items():
        if path not in leaves:
            raise UnservableError(f"the adapter is on {path}, which is no linear or embedding")
        leaf = leaves[path]
        if path in attachments:
            raise UnservableError(f"two adapters are on {path}")
        # the class's own: an instance's may be another tenant's attachment at this moment
        base = partial(type(leaf).forward, leaf)
        target = Target(path, leaf, base, facts, spec.get("config", {}), adapter, parameters)
        attachments[path] = (leaf, ATTACH[kind](target))
