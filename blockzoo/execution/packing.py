"""Codes of one, two or four bits in bytes: what a compact difference is kept and served as.

A difference is ``(codes − middle) · scale`` with one scale a row, where *middle* is half of the
largest code: levels lie evenly on both sides of nought. A row of W columns is cut into as many
runs as a byte has codes; byte j holds the j-th code of every run, the first run's lowest. So a
run unpacks with one shift and one mask, and needs no interleaving. A run's length is a multiple
of 16, columns past the last are nought (and are to be multiplied by nought).
"""

from __future__ import annotations

import torch

from blockzoo.partition.compact import WIDTHS, run_length

__all__ = ["WIDTHS", "middle", "pack", "run_length", "unpack"]


def middle(bits: int) -> float:
    """What codes are counted from."""
    return ((1 << bits) - 1) / 2


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack codes into bytes.

    Parameters
    ----------
    codes : torch.Tensor
        (rows, columns), integers from 0 to 2^bits − 1.
    bits : int
        One of :data:`WIDTHS`.

    Returns
    -------
    torch.Tensor
        (rows, `run_length`) uint8.
    """
    length, runs = run_length(codes.shape[1], bits), 8 // bits
    padded = torch.nn.functional.pad(codes.to(torch.uint8), (0, runs * length - codes.shape[1]))
    packed = torch.zeros(len(codes), length, dtype=torch.uint8, device=codes.device)
    for run in range(runs):
        packed |= padded[:, run * length : (run + 1) * length] << (bits * run)
    return packed


def unpack(packed: torch.Tensor, bits: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    """The values that packed codes stand for, before their scale.

    Parameters
    ----------
    packed : torch.Tensor
        (…, `run_length`) uint8.
    bits, columns : int
    dtype : torch.dtype

    Returns
    -------
    torch.Tensor
        (…, columns): codes less `middle`.
    """
    mask = 2**bits - 1
    runs = [(packed >> (bits * run)) & mask for run in range(8 // bits)]
    return torch.cat(runs, -1)[..., :columns].to(dtype).sub_(middle(bits))
