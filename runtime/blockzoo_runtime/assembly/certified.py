"""The certified chains of models that were asked for, as tenants of their own.

A chain's tenant has a digest, needs and upstream of its own, so its weights, keys and values are
never taken for those of the exact chain; tokens, tokenizer and limits are the model's.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from blockzoo.equivalence.chains import Certificates, CertifiedChain
from blockzoo.errors import BlockzooError
from blockzoo_runtime.assembly.menu import Menu, Option

if TYPE_CHECKING:
    from blockzoo.records import Model
    from blockzoo.zoo import Zoo
    from blockzoo_runtime.tenant import Tenant

Make = Callable[["Model", torch.dtype], "Tenant"]


class Certified:
    """Makes menus.

    Parameters
    ----------
    zoo : Zoo
    make : callable
        ``(model, dtype) -> Tenant``.
    any_text : bool
        Whether certificates count that name no text of the tenant's own domain.

    Notes
    -----
    Not thread-safe: `Tenants` holds its lock.
    """

    def __init__(self, zoo: Zoo, make: Make, any_text: bool) -> None:
        self._certificates = Certificates(zoo)
        self._make = make
        self._any_text = any_text
        self._tenants: dict[str, dict[str, Tenant | None]] = {}  # by model, then by chain
        self._menus: dict[tuple[str, tuple[str, ...]], Menu] = {}
        self._warned: set[str] = set()

    def names(self, digest: str) -> tuple[str, str] | None:
        """The model, and the name of its chain, that a tenant of this digest serves."""
        for (model, _), menu in list(self._menus.items()):
            for option in menu.options[1:]:
                if option.tenant.digest == digest:
                    return model, option.name
        return None

    def menu(self, name: str, exact: Tenant, at_most: str | None) -> Menu:
        """What a request may get; the same menu until the certificates change.

        Parameters
        ----------
        name : str
            The model's, for a warning.
        exact : Tenant
        at_most : str or None
            The worst grade; None: exact.
        """
        chains: list[CertifiedChain] = []
        if at_most is not None:
            find = self._certificates.chains
            chains = find(exact.digest, at_most, any_text=self._any_text)
            if not chains and not self._any_text and exact.digest not in self._warned:
                others = find(exact.digest, at_most, any_text=True)
                if others:
                    self._warn(name, exact.digest, len(others))
        key = exact.digest, tuple(chain.record for chain in chains)
        if key not in self._menus:
            options = [Option(exact)]
            for chain in chains:
                tenant = self._tenant(exact, chain)
                if tenant is not None:
                    options.append(Option(tenant, chain.name, chain.kl))
            self._menus[key] = Menu(tuple(options))
        return self._menus[key]

    def forget(self, digest: str) -> list[str]:
        """A model that no name means any more; returns the digests of its chains' tenants."""
        self._menus = {key: menu for key, menu in self._menus.items() if key[0] != digest}
        made = self._tenants.pop(digest, {}).values()
        return [tenant.digest for tenant in made if tenant is not None]

    def _tenant(self, exact: Tenant, chain: CertifiedChain) -> Tenant | None:
        """None where a request could not go on in it as in the exact chain."""
        made = self._tenants.setdefault(exact.digest, {})
        if chain.model.digest not in made:
            made[chain.model.digest] = self._made(exact, chain)
        return made[chain.model.digest]

    def _made(self, exact: Tenant, chain: CertifiedChain) -> Tenant | None:
        try:
            tenant = self._make(chain.model, exact.dtype)
        except BlockzooError:  # the exact chain is always right
            return None
        alike = ("virtual", "whole", "recompute_after", "vocabulary", "context")
        same = all(getattr(tenant, what) == getattr(exact, what) for what in alike)
        return tenant if same else None

    def _warn(self, name: str, digest: str, count: int) -> None:
        self._warned.add(digest)
        warnings.warn(
            f"{name} is served exactly: its {count} certified chains name no text of its own "
            "domain (certify with --own FILE, or LLM(any_text=True))",
            stacklevel=2,
        )
