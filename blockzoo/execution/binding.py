"""A block's tensors put into its executor for one call.

Made once for each hop; binding is then one dictionary write for each tensor. Adapters ride on
the executor's leaves: an `Attachment` takes the place of a leaf's ``forward`` and calls it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import nn

from blockzoo.errors import UnservableError
from blockzoo.execution.fused import Fused
from blockzoo.execution.tensors import TensorSource
from blockzoo.tensors import TensorRef

#: what a parameter is bound to
Source = TensorRef | Fused


class Attachment(Protocol):
    """An adapter on one leaf: computes what the leaf would, and the adapter's part."""

    def sources(self) -> Iterable[Source]:
        """What it computes with: the adapter's tensors, and what is made of them."""
        ...

    def load(self, source: TensorSource) -> None:
        """Take the tensors of the next call from there."""
        ...

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """The leaf's output with the adapter applied."""
        ...


class Binding:
    """One block on its executor.

    Parameters
    ----------
    slots : mapping
        The executor's parameter slots.
    parameters : mapping of str to TensorRef or Fused
        What each slot is bound to.
    attachments : mapping of str to (nn.Module, Attachment)
        By leaf name: the leaf and what stands before it.

    Attributes
    ----------
    parameters, attachments
        As given.
    """

    def __init__(
        self,
        slots: Mapping[str, tuple[dict[str, Any], str]],
        parameters: Mapping[str, Source],
        attachments: Mapping[str, tuple[nn.Module, Attachment]],
    ) -> None:
        self.parameters = parameters
        self.attachments = attachments
        self._plain: list[tuple[dict[str, Any], str, TensorRef, Any]] = []
        self._fused: list[tuple[dict[str, Any], str, Fused, Any]] = []
        for name, (owner, key) in slots.items():
            bound = parameters[name]
            if isinstance(bound, Fused):
                self._fused.append((owner, key, bound, owner[key]))
            else:
                self._plain.append((owner, key, bound, owner[key]))
        self._attachments = [(leaf.__dict__, attached) for leaf, attached in attachments.values()]

    @contextmanager
    def bound(self, source: TensorSource) -> Iterator[None]:
        """The executor holds this block's tensors inside, and none outside."""
        tensor = source.tensor
        try:
            for owner, key, ref, _ in self._plain:
                owner[key] = tensor(ref)
            for owner, key, fused, _ in self._fused:
                owner[key] = fused.get(source)
            for leaf, attached in self._attachments:
                attached.load(source)
                leaf["forward"] = attached
            yield
        finally:
            for leaf, _ in self._attachments:
                leaf.pop("forward", None)
            # so that what the source lets go of is freed
            for owner, key, _, empty in self._plain:
                owner[key] = empty
            for owner, key, _, empty in self._fused:
                owner[key] = empty

    def refs(self) -> Iterator[TensorRef]:
        """Every tensor of the zoo that is used here."""
        attached = (source for _, each in self._attachments for source in each.sources())
        for source in (*self.parameters.values(), *attached):
            if isinstance(source, Fused):
                yield from source.parts
            else:
                yield source


def missing_tensors(names: Iterable[str]) -> UnservableError:
    """The error for parameters that no tensor of the checkpoint fills."""
    listed = ", ".join(sorted(names))
    return UnservableError(
        f"the checkpoint has no tensor for {listed}",
        hint="transformers would make them up at random; ingest a complete checkpoint",
    )
