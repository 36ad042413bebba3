"""Products with codes of one, two or four bits, by torch's product of 4-bit weights on CPUs.

A byte of `execution.packing` is two nibbles, so a matrix of codes is one of nibbles with a
quarter, half or all of the columns. A nibble of two codes stands for ``c0 + 4 c1``; with what x
meets them, ``c0 x0 + c1 x1 = c0 (x0 − x1/4) + (c0 + 4 c1) x1/4``: a product with the nibbles'
lower bits, which an AND over the bytes leaves, and one with all of them. Four codes take four,
and all of them are one product of as many columns.

torch computes this fast in bfloat16 alone, for few rows at a time: for more, tiles are unpacked.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache

import torch
from torch.nn.functional import pad

from blockzoo.execution.binding import Source
from blockzoo.execution.fused import Fused, derived_key
from blockzoo.execution.packing import middle
from blockzoo.tensors import TensorInfo, TensorRef

#: what packed rows are a multiple of, so that all lie in blocks of one make
ROWS = 64

#: from how many rows of x on unpacking pays (measured for matrices of 256 and 1024 columns)
MANY = 64

_TILE = 4 << 20  # bytes of unpacked weights at once
_CONVERTED = 1 << 22  # nibbles packed at once: each is an int32 before
_GROUPS = (256, 128, 64, 32)  # columns with a scale of their own: what the product can take
_BLOCKS = (64, 32)


@lru_cache(maxsize=1)
def layout() -> tuple[int, tuple[int, ...]] | None:
    """How torch lays rows in bytes: rows of a block, and their order in it.

    A block is (columns, rows / 2) bytes; its rows stand in the low nibbles first. None where
    that cannot be told, and so not be undone.
    """
    numbers = torch.arange(2 * ROWS, dtype=torch.int32)[:, None].expand(-1, 32)
    try:
        low, high = (_convert((numbers >> shift) & 15) for shift in (0, 4))
    except (AttributeError, RuntimeError, NotImplementedError):
        return None
    for block in _BLOCKS:
        found = _nibbles(low, 32, block).int() + 16 * _nibbles(high, 32, block).int()
        order = found[0, 0].tolist()
        first = torch.arange(0, 2 * ROWS, block)[:, None, None]
        if sorted(order) == list(range(block)) and torch.equal(
            found - first, found[:1, :1].expand_as(found)
        ):
            return block, tuple(order)
    return None


def is_usable(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether differences are kept as nibbles there."""
    return device.type == "cpu" and dtype == torch.bfloat16 and layout() is not None


def resident_form(codes: TensorRef, device: torch.device, dtype: torch.dtype) -> Source:
    """What the codes of a linear leaf are kept as: `packed`, or as they are stored."""
    return packed(codes) if is_usable(device, dtype) else codes


def packed(codes: TensorRef) -> Fused:
    """The nibbles of codes as they are resident: (rows, run length) uint8, rows to a multiple."""
    rows, length = codes.shape
    info = TensorInfo("U8", (-(-rows // ROWS) * ROWS, length))
    return Fused(derived_key("nibbles", [codes]), (codes,), _pack, info)


def _pack(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    [codes] = parts
    rows, length = codes.shape
    whole = codes.new_empty(-(-rows // ROWS) * ROWS, length)
    step = max(ROWS, _CONVERTED // (2 * length) // ROWS * ROWS)
    for first in range(0, len(whole), step):
        some = codes[first : first + step]
        nibbles = torch.cat([some & 15, some >> 4], 1).int()
        short = -len(some) % ROWS
        whole[first : first + step] = _convert(pad(nibbles, (0, 0, 0, short)))
    return whole


def _convert(nibbles: torch.Tensor) -> torch.Tensor:
    done: torch.Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(nibbles.contiguous(), 1)
    return done


def spread(x: torch.Tensor, bits: int, length: int) -> torch.Tensor:
    """What the lowest codes of nibbles, the lowest two, …, all are multiplied with.

    Parameters
    ----------
    x : torch.Tensor
        (M, columns).
    bits, length : int
        Of the codes, and the bytes of a row.

    Returns
    -------
    torch.Tensor
        (M, codes of a nibble · 2 · length), contiguous.
    """
    count = 4 // bits
    if short := 2 * count * length - x.shape[1]:
        x = pad(x, (0, short))
    if count == 1:
        return x.contiguous()
    each = x.view(-1, 2, count, length).transpose(1, 2) * _shares(bits)
    out = x.new_empty(each.shape)
    torch.sub(each, pad(each[:, 1:], (0, 0, 0, 0, 0, 1)), out=out)
    return out.view(len(x), -1)


@cache
def _shares(bits: int) -> torch.Tensor:
    """What a code counts for in a nibble, inverted: 1, 1/4 or 1, 1/2, 1/4, 1/8."""
    shares = [2.0 ** (-bits * place) for place in range(4 // bits)]
    return torch.tensor(shares, dtype=torch.bfloat16).view(-1, 1, 1)


def multiply(x: torch.Tensor, nibbles: torch.Tensor, bits: int) -> torch.Tensor:
    """Products of rows with the levels that codes stand for (`execution.packing.unpack`).

    Parameters
    ----------
    x : torch.Tensor
        Rows of `spread`'s.
    nibbles : torch.Tensor
        `packed`'s.
    bits : int

    Returns
    -------
    torch.Tensor
        (m, rows to a multiple of `ROWS`).
    """
    rows, length = nibbles.shape
    if bits < 4:
        known = layout()
        assert known is not None
        # a block's bytes lie column by column: columns of nibbles in part, then of whole ones
        nibbles = (nibbles.view(rows // known[0], 1, -1) & _masks(bits)).view(rows, -1)
    group = next(size for size in _GROUPS if 2 * length % size == 0)
    product: torch.Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
        x, nibbles, group, _grid(2 * length // group, rows, bits)
    )
    return product


@cache
def _masks(bits: int) -> torch.Tensor:
    """What is left of a byte's two nibbles: the lowest codes, the lowest two, …, all."""
    kept = [0x11 * (2 ** (bits * (place + 1)) - 1) for place in range(4 // bits)]
    return torch.tensor(kept, dtype=torch.uint8)[None, :, None]


@cache
def _grid(groups: int, rows: int, bits: int) -> torch.Tensor:
    """(codes of a nibble · groups, rows, 2): scales of one, and what codes less 8 are moved by."""
    zeros = [8 - middle(bits * (place + 1)) for place in range(4 // bits)]
    each = [torch.tensor([1.0, zero], dtype=torch.bfloat16) for zero in zeros]
    return torch.cat([one.repeat(groups, rows, 1) for one in each])


def multiply_many(
    x: torch.Tensor, nibbles: torch.Tensor, bits: int, columns: int, out: torch.Tensor
) -> None:
    """As `multiply`, by unpacking a tile at a time.

    Parameters
    ----------
    x : torch.Tensor
        (m, columns).
    nibbles : torch.Tensor
    bits, columns : int
    out : torch.Tensor
        (m, rows): what the products are written to.
    """
    known = layout()
    assert known is not None
    block, order = known
    length, count = nibbles.shape[1], 4 // bits
    if short := 2 * count * length - columns:
        x = pad(x, (0, short))
    step = max(1, _TILE // (block * x.shape[1] * x.element_size())) * block
    back = None if order == tuple(range(block)) else torch.tensor(order).argsort()
    for first in range(0, out.shape[1], step):
        some = _nibbles(nibbles[first : first + step], 2 * length, block)
        if back is not None:
            some = some.index_select(2, back)
        blocks = len(some)
        some = some.view(blocks, 2, 1, length, block)
        codes = [(some >> (bits * place)) & (2**bits - 1) for place in range(count)]
        levels = torch.cat(codes, 2).view(blocks, x.shape[1], block)
        tile = levels.permute(1, 0, 2).to(x.dtype, memory_format=torch.contiguous_format)
        tile = tile.sub_(middle(bits)).view(x.shape[1], blocks * block)
        last = min(first + step, out.shape[1])
        out[:, first:last] = (x @ tile)[:, : last - first]


def _nibbles(packed: torch.Tensor, columns: int, block: int) -> torch.Tensor:
    """(blocks, columns, rows of a block) uint8, rows in torch's order."""
    pairs = packed.reshape(-1, columns, block // 2)
    return torch.cat([pairs & 15, pairs >> 4], 2)
