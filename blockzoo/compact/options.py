"""The ways in which a matrix's difference may be kept, each with its bytes and its error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from blockzoo.compact.differences import Matrix
from blockzoo.compact.rounding import output_error, round_rows
from blockzoo.compact.spectrum import find_low_rank
from blockzoo.errors import BlockzooError
from blockzoo.execution.packing import pack
from blockzoo.execution.tensors import TORCH_DTYPES
from blockzoo.store.session import Session
from blockzoo.tensors import TensorInfo, TensorRef

Method = Literal["none", "bits", "lowrank", "full"]

_ROWS = 64  # that packed products take at a time


@dataclass(frozen=True)
class Option:
    """One way of keeping a matrix.

    Parameters
    ----------
    method : str
        ``"none"``: the base's, as it is; ``"bits"``: a difference in codes; ``"lowrank"``: one
        in two factors; ``"full"``: the tuned one.
    facts : dict
        What an adapter block says of it.
    tensors : dict of str to TensorRef
        What it keeps, by the end of its name in an adapter block.
    stored, resident, step : int
        Bytes beyond the base's: in the zoo, in memory, and read in a step.
    error : float
        The mean squared change of the matrix's outputs, summed over them.
    """

    method: Method
    facts: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    stored: int
    resident: int
    step: int
    error: float

    @property
    def name(self) -> str:
        """Such as ``2 bits``, ``rank 16``, ``none``."""
        if self.method == "bits":
            return f"{self.facts['bits']} bit{'s' if self.facts['bits'] > 1 else ''}"
        return f"rank {self.facts['rank']}" if self.method == "lowrank" else self.method


def options_of(
    session: Session,
    matrix: Matrix,
    tensors: tuple[torch.Tensor, torch.Tensor],
    gram: torch.Tensor,
    widths: Sequence[int],
) -> list[Option]:
    """Every way of keeping a matrix, the cheapest first; what they need is written to the zoo.

    Parameters
    ----------
    session : Session
    matrix : Matrix
    tensors : (torch.Tensor, torch.Tensor)
        The tuned and the base's, as they are stored.
    gram : torch.Tensor
        (in, in) float32: the second moments of its inputs.
    widths : sequence of int
        Bits of a code that are to be tried.

    Raises
    ------
    BlockzooError
        Where values are not finite.
    """
    tuned, base = (tensor.float() for tensor in tensors)
    off = tuned - base
    if not (off.isfinite().all() and gram.isfinite().all()):
        place = matrix.places[0]
        raise BlockzooError(
            f"{place.path} at hop {place.hop} has, or is given, values that are not finite: there "
            "is no rounding what it differs by",
            hint="the model stays exact; `blockzoo dedupe` keeps it without loss",
        )
    lies: dict[str, bool] = {}
    if any(place.transposed for place in matrix.places):
        off, tuned, lies = off.T.contiguous(), tuned.T, {"transposed": True}
    found = [Option("none", {}, {}, 0, 0, 0, output_error(off, gram))]
    low = find_low_rank(off, tuned, TORCH_DTYPES[matrix.tuned.dtype])
    if low is not None and len(matrix.places) == 1:
        rank = len(low.a)
        ends = ("lora_embedding_A", "lora_embedding_B") if matrix.multiplied is None else (
            "lora_A.weight", "lora_B.weight")  # fmt: skip
        # an embedding's A is looked up in, so it is the factor with a column a token
        a, b = (low.b.T, low.a.T) if matrix.multiplied is None else (low.a, low.b)
        kept = {end: keep(session, t) for end, t in zip(ends, (a, b), strict=True)}
        size = sum(ref.nbytes for ref in kept.values())
        step = size if matrix.multiplied else 0
        facts = {"method": "lowrank", "rank": rank, "alpha": rank, **lies}
        error = output_error(off - low.values(), gram)
        found.append(Option("lowrank", facts, kept, size, size, step, error))
    for bits in widths:
        rounded = round_rows(off, gram, bits)
        packed = pack(rounded.codes, bits)
        kept = {"codes": keep(session, packed), "scale": keep(session, rounded.scale)}
        size = sum(ref.nbytes for ref in kept.values())
        resident, step = 0, 0
        for place in matrix.places:
            if place.lookup:
                resident += kept["codes"].nbytes
            else:
                step = packed.shape[1] * -(-len(packed) // _ROWS) * _ROWS + kept["scale"].nbytes
        resident += step or kept["scale"].nbytes
        facts = {"method": "bits", "bits": bits, "columns": off.shape[1], **lies}
        error = output_error(off - rounded.values(bits), gram)
        found.append(Option("bits", facts, kept, size, resident, step, error))
    size = matrix.tuned.nbytes
    found.append(Option("full", {}, {}, size, size, size if matrix.multiplied else 0, 0.0))
    return found


def keep(session: Session, tensor: torch.Tensor) -> TensorRef:
    """Write a tensor to the zoo."""
    tensor = tensor.contiguous()
    names = {dtype: name for name, dtype in TORCH_DTYPES.items()}
    info = TensorInfo(names[tensor.dtype], tuple(tensor.shape))
    data = tensor.view(torch.uint8).reshape(-1).numpy().data
    digest, _ = session.tensor(info, data)
    return TensorRef(info.dtype, info.shape, digest)
