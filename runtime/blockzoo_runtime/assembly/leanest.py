"""A policy for throughput: whatever adds least to what a step of all models reads.

It takes certified chains also where memory has room, because a block that others run on is read
anyway; among those that add alike, the least lossy.
"""

from __future__ import annotations

from collections.abc import Sequence

from blockzoo_runtime.assembly.policy import Candidate


def leanest(candidates: Sequence[Candidate]) -> int:
    """See the module."""
    return min(
        range(len(candidates)),
        key=lambda place: (candidates[place].share, candidates[place].loss),
    )
