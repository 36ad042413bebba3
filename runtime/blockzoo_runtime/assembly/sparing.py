"""The default policy: no loss without need, and no loading where what is here will do.

1. Chains that have room beside the other models go before those that have not: nobody is let go
   of for a chain that another could stand in for.
2. Among those, the fewest bytes to bring in. Where nothing has room, the smallest share: what
   would be needed if all models took the chains that they have most in common.
3. What costs alike (within an eighth of the exact chain) is decided by the loss: the exact chain,
   where it is here and fits; then the busier one, whose blocks are read anyway.
4. From the chain that serves a model now to a lossier one it goes only for twice that difference,
   so that small changes do not send it to and fro.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockzoo_runtime.assembly.policy import Candidate

#: the share of the exact chain's bytes that is no reason to prefer one chain to another
_SLACK = 1 / 8


def sparing(candidates: Sequence[Candidate]) -> int:
    """See the module; the exact chain is the first of the candidates."""
    fitting = [place for place, one in enumerate(candidates) if not one.over]

    def price(place: int) -> float:
        return candidates[place].missing if fitting else candidates[place].share

    places = fitting or range(len(candidates))
    slack = _SLACK * candidates[0].total
    least = min(map(price, places))
    best = min(
        (place for place in places if price(place) <= least + slack),
        key=lambda place: (candidates[place].loss, -candidates[place].requests, price(place)),
    )
    for place in places:
        one = candidates[place]
        stays = one.current and one.loss <= candidates[best].loss
        if stays and price(place) <= least + 2 * slack:
            return place
    return best
