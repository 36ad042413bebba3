"""What a request may be served by: the exact chain of its model, and the certified ones."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from blockzoo.equivalence.chains import check_grade
from blockzoo.errors import UsageError

if TYPE_CHECKING:
    from blockzoo_runtime.tenant import Tenant

#: what ``assembly`` may be
EXACT = "exact"
_AT_MOST = "at_most:"


@dataclass(frozen=True, eq=False)
class Option:
    """One chain.

    Parameters
    ----------
    tenant : Tenant
        What runs it.
    name : str
        ``"exact"``, or its grade and certificate, as ``"B:0123456789ab"``.
    kl : float
        The mean KL of its certificate in its worst domain; 0 for the exact chain.
    """

    tenant: Tenant
    name: str = EXACT
    kl: float = 0.0


@dataclass(frozen=True, eq=False)
class Menu:
    """The chains that a request may get, the exact one first, then the least lossy.

    Compared by identity: requests that may get the same have the same menu.
    """

    options: tuple[Option, ...]

    @property
    def exact(self) -> Option:
        return self.options[0]

    @cached_property
    def keys(self) -> frozenset[object]:
        """Every tensor that some option computes with."""
        return frozenset(key for one in self.options for key in one.tenant.needs.nbytes)

    @cached_property
    def _reduced(self) -> dict[str, Menu]:
        return {}

    def without(self, digest: str) -> Menu:
        """The same without a certified chain (by its tenant's digest), which could not be had."""
        if digest not in self._reduced:
            options = tuple(one for one in self.options if one.tenant.digest != digest)
            self._reduced[digest] = self if options == self.options else Menu(options)
        return self._reduced[digest]


def parse_assembly(assembly: str) -> str | None:
    """The worst grade that an ``assembly`` takes; None where it is exact.

    Raises
    ------
    UsageError
        Where it is neither ``"exact"`` nor ``"at_most:A"``, ``"at_most:B"`` or ``"at_most:C"``.
    """
    if assembly == EXACT:
        return None
    grade = assembly.removeprefix(_AT_MOST) if isinstance(assembly, str) else ""
    try:
        if grade == assembly:
            raise UsageError("no grade")
        check_grade(grade)
    except UsageError:
        raise UsageError(
            f"assembly is {assembly!r}",
            hint="give exact, at_most:A, at_most:B or at_most:C",
        ) from None
    return grade
