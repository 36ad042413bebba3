"""Chooses which of a model's chains serves a request, by what is in memory and who else asks.

Gathers the numbers that a policy sees and remembers what it said: all requests of a model that
wait at a time get the same chain. What other models want is told from the requests that run or
wait and from the last ones that came, so that models which are asked one after another are
assembled as if they were asked together.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from typing import TYPE_CHECKING

from blockzoo_runtime.assembly.menu import Menu, Option
from blockzoo_runtime.assembly.policy import Candidate, Policy

if TYPE_CHECKING:
    from blockzoo_runtime.blocks.needs import Key
    from blockzoo_runtime.blocks.resident import ResidentTensors
    from blockzoo_runtime.tenant import Tenant

#: how many of the last requests tell which models are asked for
_LATELY = 64


class Assembler:
    """Chooses chains.

    Parameters
    ----------
    resident : ResidentTensors
    policy : Policy
    weights : int or None
        Bytes that memory has for weights; None: no limit.

    Notes
    -----
    Not thread-safe: the engine's lock is held by callers.
    """

    def __init__(self, resident: ResidentTensors, policy: Policy, weights: int | None) -> None:
        self._resident = resident
        self._policy = policy
        self._weights = weights
        self._lately: deque[Menu] = deque()
        self._asked: Counter[Menu] = Counter()  # of the last requests, and those that are not over
        self._chosen: dict[Menu, Option] = {}
        self._requests: Counter[str] = Counter()  # by block: requests that are not over
        self._state: tuple[object, ...] = ()
        self._changes = 0
        self._others: dict[Menu, Option] = {}  # what was found in this state

    def begin(self, menu: Menu, option: Option) -> None:
        """A request came, and got a chain."""
        self._lately.append(menu)
        self._count(menu, 2)  # once while it is not over, once while it is one of the last
        if len(self._lately) > _LATELY:
            self._count(self._lately.popleft(), -1)
        self._requests.update(option.tenant.blocks)

    def move(self, before: Option, after: Option) -> None:
        """A request that waits got another chain."""
        self._requests.subtract(before.tenant.blocks)
        self._requests.update(after.tenant.blocks)

    def end(self, menu: Menu, option: Option) -> None:
        """A request is over."""
        self._count(menu, -1)
        self._requests.subtract(option.tenant.blocks)

    def _count(self, menu: Menu, change: int) -> None:
        before = self._asked[menu]
        self._asked[menu] += change
        if not self._asked[menu]:
            del self._asked[menu]
            self._chosen.pop(menu, None)
        if not before or menu not in self._asked:
            self._changes += 1

    def choose(self, menu: Menu, pinned: Iterable[Tenant] = ()) -> Option:
        """The chain for a request that has not begun.

        Parameters
        ----------
        menu : Menu
            What it may get.
        pinned : iterable of Tenant
            What stays in memory whatever is asked for.
        """
        if len(menu.options) == 1:
            return menu.exact
        state = (self._changes, self._resident.nbytes, len(self._resident), *map(id, pinned))
        if state != self._state:
            self._state = state
            self._others.clear()
        if menu not in self._others:
            option = menu.options[self._policy(self._candidates(menu, pinned))]
            if self._chosen.get(menu) is not option:
                self._chosen[menu] = option
                self._changes += 1
            self._others[menu] = option
        return self._others[menu]

    def _candidates(self, menu: Menu, pinned: Iterable[Tenant]) -> list[Candidate]:
        others = [other for other in self._asked if other is not menu]
        beside: dict[Key, int] = {}
        for tenant in (*pinned, *(self._serving(other).tenant for other in others)):
            beside |= tenant.needs.nbytes
        models = {other.exact.tenant.digest: other for other in others}
        models.pop(menu.exact.tenant.digest, None)
        users = Counter(key for other in models.values() for key in other.keys)
        used = sum(beside.values())
        return [
            self._candidate(option, self._chosen.get(menu) is option, beside, used, users)
            for option in menu.options
        ]

    def _serving(self, menu: Menu) -> Option:
        return self._chosen.get(menu, menu.exact)

    def _candidate(
        self,
        option: Option,
        current: bool,
        beside: dict[Key, int],
        used: int,
        users: Counter[object],
    ) -> Candidate:
        needs = option.tenant.needs.nbytes
        own = sum(size for key, size in needs.items() if key not in beside)
        return Candidate(
            loss=option.kl,
            total=option.tenant.needs.total,
            missing=sum(size for key, size in needs.items() if key not in self._resident),
            over=0 if self._weights is None else max(used + own - self._weights, 0),
            own=own,
            share=sum(size / (users[key] + 1) for key, size in needs.items()),
            requests=max((self._requests[block] for block in option.tenant.blocks), default=0),
            current=current,
        )
