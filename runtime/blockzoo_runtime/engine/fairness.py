"""Who has been served how much: a virtual token counter for each tenant.

"Fairness in Serving Large Language Models" (Sheng et al., arXiv 2401.00588): the scheduler serves
the tenant that has been charged least. A tenant that asked for less than its share cannot save
the rest up: when it has nothing waiting it is lifted to the least charged of those that do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

#: what a slot costs, as in the paper: a generated token is dearer than one of a prompt
PROMPT_COST = 1.0
OUTPUT_COST = 2.0


@dataclass(eq=False)
class Account:
    """What one tenant was charged.

    Parameters
    ----------
    tenant : str
    order : int
        Breaks ties: who came first.
    charge : float
    backlogged : bool
        Whether it wanted more than it got in the last step.
    """

    tenant: str
    order: int
    charge: float = 0.0
    backlogged: bool = False

    @property
    def rank(self) -> tuple[float, int]:
        """The lowest is served first."""
        return self.charge, self.order


class Accounts:
    """The accounts of the tenants that have something to do."""

    def __init__(self) -> None:
        self._open: dict[str, Account] = {}
        self._remembered: dict[str, float] = {}
        self._floor = 0.0  # the virtual time: what a tenant with nothing waiting counts as charged
        self._opened = 0

    def __getitem__(self, tenant: str) -> Account:
        return self._open[tenant]

    def __len__(self) -> int:
        return len(self._open)

    def open(self, tenant: str) -> Account:
        """The tenant's account, from where it stood or from the floor."""
        if tenant not in self._open:
            self._opened += 1
            charge = max(self._remembered.pop(tenant, 0.0), self._floor)
            self._open[tenant] = Account(tenant, self._opened, charge)
        return self._open[tenant]

    def close(self, tenant: str) -> None:
        """The tenant has nothing to do any more."""
        account = self._open.pop(tenant)
        if account.charge > self._floor:
            self._remembered[tenant] = account.charge

    def begin_step(self) -> list[Account]:
        """Every open account; those that lacked nothing are lifted to the floor."""
        for account in self._open.values():
            if not account.backlogged:
                account.charge = max(account.charge, self._floor)
            account.backlogged = False
        return list(self._open.values())

    def end_step(self, served: Iterable[str]) -> None:
        """Move the floor: to the least charged of those that lack something.

        Where nobody lacks anything nobody can be wronged, and all start level again.
        """
        lacking = [account.charge for account in self._open.values() if account.backlogged]
        if lacking:
            self._floor = max(self._floor, min(lacking))
        else:
            charges = (self._open[tenant].charge for tenant in served)
            self._floor = max(self._floor, max(charges, default=0.0))
        if self._remembered:
            self._remembered = {t: c for t, c in self._remembered.items() if c > self._floor}
