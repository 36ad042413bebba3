"""What a policy of adaptive assembly sees, and what it says. Numbers only: no torch, no tokens.

A policy is one file: a function from the candidates for a request to the place of one of them.
`sparing` is the default, `leanest` another; `LLM` takes any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A chain that may serve a request, as a policy sees it.

    Other models are those that were asked for lately, each by the chain that serves it now.

    Parameters
    ----------
    loss : float
        The mean KL of its certificate, in the worst domain; 0 for the exact chain.
    total : int
        Bytes of weights that it computes with.
    missing : int
        How many of them would have to be brought in.
    over : int
        Bytes that memory lacks for it and the other models together; 0 where there is room.
    own : int
        How many bytes of it no other model uses: what it adds to memory, and to the bytes that a
        step with all of them reads.
    share : float
        Its bytes, each divided among the models that have a chain with it: what it would add if
        all of them went together.
    requests : int
        How many of other requests, running or waiting, use its busiest block.
    current : bool
        Whether the last request for the model got it.
    """

    loss: float
    total: int
    missing: int
    over: int
    own: int
    share: float
    requests: int
    current: bool


Policy = Callable[[Sequence[Candidate]], int]
"""The place of the candidate that is to serve; the exact chain comes first, then by loss."""
