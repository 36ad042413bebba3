"""Whether the difference of two matrices is of low rank but for rounding: a LoRA, merged."""

from __future__ import annotations

from dataclasses import dataclass

import torch

_SHARE = 4  # a rank over a quarter of what it could be is no low rank
_SLACK = 1.5  # times the energy that rounding puts there
_SAMPLED = 8  # directions by which the range is searched beyond the rank in question


@dataclass(frozen=True)
class LowRank:
    """``b @ a`` and what it leaves.

    Parameters
    ----------
    a : torch.Tensor
        (rank, columns), in the dtype that the tuned tensor is kept in.
    b : torch.Tensor
        (rows, rank).
    """

    a: torch.Tensor
    b: torch.Tensor

    def values(self) -> torch.Tensor:
        """(rows, columns) float32."""
        return self.b.float() @ self.a.float()


def rounding_energy(values: torch.Tensor, dtype: torch.dtype) -> float:
    """The squared norm of what rounding a tensor of such values to a dtype adds, expected.

    A value between two powers of two is off by up to half a step of its binade, evenly spread.
    """
    exponent = torch.frexp(values.float())[1].double()
    steps = torch.finfo(dtype).eps * torch.exp2(exponent - 1)
    return float((steps.square() / 12)[values != 0].sum())


def find_low_rank(
    difference: torch.Tensor, tuned: torch.Tensor, dtype: torch.dtype
) -> LowRank | None:
    """The least rank that leaves no more of a difference than rounding explains.

    Parameters
    ----------
    difference : torch.Tensor
        (rows, columns) float32: of the tuned tensor from its base.
    tuned : torch.Tensor
        The tuned one.
    dtype : torch.dtype
        What it was rounded to when it was saved.

    Returns
    -------
    LowRank or None
        None where it takes more than a quarter of the full rank.
    """
    most = min(difference.shape) // _SHARE
    if most == 0:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # the search begins at random, and the result must not
        searched = min(most + _SAMPLED, *difference.shape)
        u, s, v = torch.svd_lowrank(difference.double(), searched, niter=4)
    left = difference.double().square().sum() - s.square().cumsum(0)
    allowed = _SLACK * rounding_energy(tuned, dtype)
    enough = (left <= allowed).nonzero()
    if not len(enough) or int(enough[0]) + 1 > most:
        return None
    rank = int(enough[0]) + 1
    root = s[:rank].sqrt()
    return LowRank((root[:, None] * v[:, :rank].T).to(dtype), (u[:, :rank] * root).to(dtype))
