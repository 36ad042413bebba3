"""A difference of two matrices rounded to codes of few bits, with one scale a row.

Columns are rounded one after another, and what each rounding does to the output is made up for
in the columns that are still to come, as in GPTQ (arXiv 2210.17323): so what counts is the error
of the *outputs* on the activations that the matrix meets. Scales are then fitted to the codes in
closed form, and both are done again a few times. In the end rows are made longer, so that what is
kept of a difference is no shorter than the difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from blockzoo.execution.packing import middle

_DAMPING = 0.05  # of the mean energy: directions that the text does not show are not free
_ROUNDS = 10
_BLOCK = 64  # columns between two updates of all that come after
_SHARES = torch.linspace(0.15, 1.05, 31)  # of a row's largest value: what the last level may be
_LONGEST = 2.0  # times what least squares gives
_AT_ONCE = 1 << 24  # numbers of a matrix that are rounded at a time: each is in memory ten times
_TINY = 1e-20


@dataclass(frozen=True)
class Rounded:
    """Codes and scales, see `execution.packing`.

    Parameters
    ----------
    codes : torch.Tensor
        (rows, columns) uint8.
    scale : torch.Tensor
        (rows,) bfloat16, positive.
    """

    codes: torch.Tensor
    scale: torch.Tensor

    def values(self, bits: int) -> torch.Tensor:
        """(rows, columns) float32."""
        return (self.codes.float() - middle(bits)) * self.scale.float()[:, None]


def round_rows(matrix: torch.Tensor, gram: torch.Tensor, bits: int) -> Rounded:
    """Round a matrix so that its products with what it meets change least.

    Parameters
    ----------
    matrix : torch.Tensor
        (rows, columns) float32.
    gram : torch.Tensor
        (columns, columns) float32: the second moments of its inputs.
    bits : int
    """
    damped = gram + _DAMPING * gram.diagonal().mean().clamp_min(_TINY) * torch.eye(len(gram))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    feedback = torch.linalg.cholesky(inverse, upper=True)
    step = max(1, _AT_ONCE // matrix.shape[1])
    rows = torch.split(matrix, step)  # which have nothing to do with one another
    parts = [_round_some(some, damped, feedback, bits) for some in rows]
    return Rounded(torch.cat([p.codes for p in parts]), torch.cat([p.scale for p in parts]))


def _round_some(
    matrix: torch.Tensor, damped: torch.Tensor, feedback: torch.Tensor, bits: int
) -> Rounded:
    scale = _first_scale(matrix, damped.diagonal(), bits)
    best, least = None, None
    for _ in range(_ROUNDS):
        codes = _round(matrix, scale, feedback, bits)
        levels = codes - middle(bits)
        through = levels @ damped
        fitted = (through * matrix).sum(1) / (through * levels).sum(1).clamp_min(_TINY)
        scale = fitted.clamp_min(_TINY).bfloat16().float()
        off = matrix - levels * scale[:, None]
        error = ((off @ damped) * off).sum(1)
        if least is None or best is None:
            best, least = (codes, scale), error
        else:
            better = error < least
            best = (
                torch.where(better[:, None], codes, best[0]),
                torch.where(better, scale, best[1]),
            )
            least = torch.minimum(error, least)
    assert best is not None
    codes, scale = best
    scale = scale * _unshrunk(matrix, (codes - middle(bits)) * scale[:, None], damped)
    return Rounded(codes.to(torch.uint8), scale.bfloat16())


def _unshrunk(matrix: torch.Tensor, rounded: torch.Tensor, gram: torch.Tensor) -> torch.Tensor:
    """By how much each row is to be longer, so that it is no shorter along what it stands for.

    Least squares leaves a part of the difference out, of every matrix at once: the model is then
    a little more its base's, and text of its own domain a little less likely. The codes fit the
    activations that they were chosen on better than others, so the middle is taken (geometrically)
    between what those tell and what the weights by themselves do.
    """
    through = matrix @ gram
    by_outputs = (through * matrix).sum(1) / (through * rounded).sum(1).clamp_min(_TINY)
    by_weights = matrix.square().sum(1) / (matrix * rounded).sum(1).clamp_min(_TINY)
    return (by_outputs * by_weights).clamp(1, _LONGEST**2).sqrt()


def output_error(off: torch.Tensor, gram: torch.Tensor) -> float:
    """The mean squared change of the outputs, summed over them, if a matrix is off by so much."""
    return float(((off @ gram) * off).sum().clamp_min(0))


def _first_scale(matrix: torch.Tensor, energy: torch.Tensor, bits: int) -> torch.Tensor:
    """For each row the scale that rounds it best, each column by itself."""
    largest = matrix.abs().amax(1).clamp_min(_TINY)
    best, least = largest, torch.full_like(largest, torch.inf)
    for share in _SHARES:
        scale = (largest * share / middle(bits))[:, None]
        off = (_nearest(matrix / scale, bits) - middle(bits)) * scale - matrix
        error = off.square() @ energy
        best = torch.where(error < least, scale[:, 0], best)
        least = torch.minimum(error, least)
    return best


def _nearest(levels: torch.Tensor, bits: int) -> torch.Tensor:
    return (levels + middle(bits)).round().clamp(0, 2**bits - 1)


def _round(
    matrix: torch.Tensor, scale: torch.Tensor, feedback: torch.Tensor, bits: int
) -> torch.Tensor:
    """Codes (rows, columns) float32."""
    left = matrix.clone()
    codes = torch.empty_like(left)
    columns = left.shape[1]
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        errors = left.new_empty(len(left), last - first)
        for column in range(first, last):
            code = _nearest(left[:, column] / scale, bits)
            codes[:, column] = code
            off = left[:, column] - (code - middle(bits)) * scale
            error = off / feedback[column, column]
            left[:, column + 1 : last] -= error[:, None] * feedback[column, column + 1 : last]
            errors[:, column - first] = error
        left[:, last:] -= errors @ feedback[first:last, last:]
    return codes
