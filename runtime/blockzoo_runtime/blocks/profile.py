"""How fast each kind of block runs on a device, by batch size.

`measuring.measure` makes a profile, `store_profile` keeps it in the zoo's ``cache/``, and
`load_profile` finds it there for the engine, which cuts batches by `Profile.knee`. A lost or old
profile costs time, never a result.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from blockzoo.explore.table import Column, Table
from blockzoo.store import durable
from blockzoo.tensors import bytes_digest, canonical_json
from blockzoo.zoo import Zoo

#: batch sizes that are measured, in tokens
SIZES = tuple(2**k for k in range(10))
#: a size is at the knee when its tokens per second are this share of the best
NEAR_BEST = 0.9

_FORMAT = 1


def spec_key(kind: str, spec: Mapping[str, Any]) -> str:
    """Names a kind of block: blocks with equal keys are computed by one executor."""
    return bytes_digest(canonical_json([kind, spec]))


@dataclass(frozen=True)
class BlockProfile:
    """One kind of block on one device.

    Parameters
    ----------
    kind : str
        ``"attention"``, ``"mlp"``, ….
    spec : str
        `spec_key` of the blocks that this holds for.
    example : str
        A model's hop that was measured.
    hops : int
        How many hops of the measured models are of this kind.
    nbytes : int
        Of the block's tensors in the compute dtype.
    flops : int
        Floating point operations for one token, as torch counts them.
    sizes : tuple of int
        Batch sizes in tokens.
    seconds : tuple of float
        The fastest of several runs, for each size.
    """

    kind: str
    spec: str
    example: str
    hops: int
    nbytes: int
    flops: int
    sizes: tuple[int, ...]
    seconds: tuple[float, ...]

    @property
    def knee(self) -> int:
        """The smallest batch whose tokens per second are within 10% of the best."""
        rates = [size / took for size, took in zip(self.sizes, self.seconds, strict=True)]
        return next(s for s, rate in zip(self.sizes, rates, strict=True)
                    if rate >= NEAR_BEST * max(rates))  # fmt: skip

    def latency(self, tokens: int) -> float:
        """Seconds for a batch of so many tokens, between and beyond those measured."""
        sizes, seconds = self.sizes, self.seconds
        if tokens <= sizes[0]:
            return seconds[0]
        if tokens >= sizes[-1]:
            return seconds[-1] * tokens / sizes[-1]
        right = next(i for i, size in enumerate(sizes) if size >= tokens)
        share = (tokens - sizes[right - 1]) / (sizes[right] - sizes[right - 1])
        return seconds[right - 1] + share * (seconds[right] - seconds[right - 1])


@dataclass(frozen=True)
class Profile:
    """Every kind of block that was measured on a device, in one dtype.

    Parameters
    ----------
    device : str
        `device_name`'s.
    dtype : str
        Such as ``"bfloat16"``.
    blocks : dict of str to BlockProfile
        By `spec_key`.
    """

    device: str
    dtype: str
    blocks: Mapping[str, BlockProfile]

    def of(self, kind: str, spec: Mapping[str, Any]) -> BlockProfile | None:
        """The figures of a kind of block; None where it was not measured."""
        return self.blocks.get(spec_key(kind, spec))

    def knee(self, kind: str, spec: Mapping[str, Any]) -> int | None:
        """`BlockProfile.knee` of a kind of block; None where it was not measured."""
        found = self.of(kind, spec)
        return found.knee if found is not None else None

    def to_json(self) -> dict[str, Any]:
        return {
            "format": _FORMAT,
            "device": self.device,
            "dtype": self.dtype,
            "blocks": [{**asdict(block), "knee": block.knee} for block in self.blocks.values()],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Profile:
        if data["format"] != _FORMAT:
            raise ValueError("it has another format")
        blocks = {}
        for entry in data["blocks"]:
            values = {key: value for key, value in entry.items() if key != "knee"}
            sizes, seconds = tuple(values.pop("sizes")), tuple(values.pop("seconds"))
            if len(sizes) != len(seconds) or not sizes:
                raise ValueError("sizes and seconds do not match")
            blocks[values["spec"]] = BlockProfile(**values, sizes=sizes, seconds=seconds)
        return cls(data["device"], data["dtype"], blocks)

    def merged(self, newer: Profile) -> Profile:
        """What this profile has, and a newer one of the same device and dtype has over it."""
        return Profile(self.device, self.dtype, {**self.blocks, **newer.blocks})

    def table(self) -> Table:
        """A row for each kind of block: bytes, flops, knee, and latencies by batch size."""
        sizes = sorted({size for block in self.blocks.values() for size in block.sizes})
        rows = []
        for block in self.blocks.values():
            times = dict(zip(block.sizes, block.seconds, strict=True))
            rows.append(
                {
                    **asdict(block),
                    "knee": block.knee,
                    "rate": block.knee / block.latency(block.knee),
                    # a lookup reads a row, not the table
                    "bandwidth": block.nbytes / block.seconds[0] if block.flops else None,
                    **{f"us_{size}": 1e6 * times[size] for size in sizes if size in times},
                }
            )
        shown = [size for size in sizes if size in (1, 8, 64, 512)]
        columns = (
            Column("kind"),
            Column("hops", kind="int"),
            Column("nbytes", "bytes", kind="bytes"),
            Column("flops", "flops/token", kind="int"),
            *(Column(f"us_{size}", f"µs at {size}", kind="int") for size in shown),
            Column("knee", "knee, tokens", kind="int"),
            Column("rate", "tokens/s there", kind="int"),
            Column("bandwidth", "bytes/s at 1", kind="bytes"),
            Column("example", "measured on"),
        )
        return Table("profile", columns, rows, f"{self.device}, {self.dtype}")


@lru_cache(maxsize=8)
def device_name(device: torch.device) -> str:
    """What a profile holds for: the device's make, and on a CPU how many threads compute."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"{_cpu()}, {torch.get_num_threads()} threads"


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} ({os.cpu_count()} cores)"
    except OSError:
        pass
    import platform

    return platform.processor() or platform.machine() or "cpu"


def store_profile(zoo: Zoo, profile: Profile) -> Path:
    """Keep a profile in the zoo; kinds that were measured before and are not in it stay.

    Returns
    -------
    Path
        The file, one for each device and dtype.
    """
    path = _path(zoo, profile.device, profile.dtype)
    before = _read(path)
    whole = before.merged(profile) if before is not None else profile
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f"{path.name}.{uuid.uuid4().hex}")
    durable.replace(path, json.dumps(whole.to_json(), indent=1).encode(), staging)
    return path


def load_profile(zoo: Zoo, device: torch.device, dtype: torch.dtype) -> Profile | None:
    """What was measured on such a device; None where nothing was, or the file is unreadable."""
    return _read(_path(zoo, device_name(device), dtype_name(dtype)))


def _read(path: Path) -> Profile | None:
    try:
        return Profile.from_json(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, KeyError):
        return None  # it is a cache: to be measured again


def _path(zoo: Zoo, device: str, dtype: str) -> Path:
    key = bytes_digest(canonical_json([device, dtype]))[:16]
    return zoo.objects.layout.cache / "profiles" / f"{key}.json"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
