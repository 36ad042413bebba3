"""What the lossless codecs save, and how fast they are, beside what can be had without them.

Saving, on the real fine-tunes of ``../shared/family`` (bf16): each model's tensors as differences
from its parent's, beside XOR of the bit patterns in byte planes with zstd-3 (as BitX does it) and
beside the entropy of the ordered difference given the reference's exponent, tensor by tensor.

Speed, on one core, best of several: megabytes of raw tensor a second, for the family's tensors
and for one of 64 MB, with the reference's grouping computed anew and with it kept; beside memcpy
of the same bytes; then where the time of ``small`` goes.

    taskset -c 0 python benchmarks/codecs.py [--shared DIR] [--rounds 7] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import zstandard
from family import FULL, PARENTS, SHARED

from blockzoo.codecs import delta, planes, rows
from blockzoo.codecs.grouping import Grouping, groups
from blockzoo.codecs.streams import pack, unpack
from blockzoo.codecs.words import Words, difference, layout, restore, words
from blockzoo.formats.weights import open_weights
from blockzoo.tensors import TensorInfo

Tensor = tuple[TensorInfo, memoryview]
LARGE = 100_000  # bytes; entropies of fewer values say little
BF16 = layout("BF16")
_LIMITS = {  # raw GB/s on one core
    ("fast", "decode"): 1.0,
    ("fast", "encode"): 0.3,
    ("small", "decode"): 0.4,
    ("small", "encode"): 0.15,
}


def tensors(folder: Path) -> dict[str, Tensor]:
    file = open_weights(folder / "model.safetensors")
    return {tensor.name: (tensor.info, tensor.data) for tensor in file.tensors}


def entropy(symbols: Words) -> float:
    """Bytes, at the entropy of the symbols' own frequencies."""
    counts = np.unique(symbols, return_counts=True)[1].astype(float)
    return float(counts @ (np.log2(counts.sum()) - np.log2(counts))) / 8


def conditional_entropy(values: Words, reference: Words) -> float:
    """Bytes of the ordered difference, given the reference's exponent."""
    moved, exponents = difference(BF16, values, reference), (reference >> 7) & 255
    return sum(entropy(moved[exponents == e]) for e in np.unique(exponents))


def xor_planes(values: Words, reference: Words) -> int:
    """Bytes, as BitX keeps it: XOR, byte planes, zstd-3."""
    bits = (values ^ reference).view(np.uint8).reshape(-1, 2)
    coder = zstandard.ZstdCompressor(level=3)
    return sum(len(coder.compress(np.ascontiguousarray(bits[:, i]))) for i in (0, 1))


def saving(shared: Path) -> list[dict[str, Any]]:
    """A row for each model: bytes as they are, and by each way to keep what moved."""
    models = {name: tensors(shared / "family" / name) for name in FULL}
    result = []
    for name, parent in PARENTS.items():
        row: dict[str, Any] = dict.fromkeys(("raw", "same", "moved", "xor", "fast", "small"), 0)
        row |= {"model": name, "parent": parent, "entropy": 0.0, "grown": 0, "grown_kept": 0}
        row |= {"planes": 0, "alone": 0, "worst": 0.0}
        for key, (info, data) in models[name].items():
            other, was = models[parent][key]
            row["raw"] += info.nbytes
            alone = planes.encode(info, data, None)
            row["planes"] += info.nbytes if alone is None else len(alone)
            base = ("0" * 64, other, was)
            if (other, was) == (info, data):
                row["same"] += info.nbytes
            elif other != info:
                row["grown"] += info.nbytes
                row["grown_kept"] += len(rows.encode(info, data, base) or data)
            elif info.nbytes > LARGE:
                values, reference = words(info, data), words(other, was)
                bound = conditional_entropy(values, reference)
                sizes = {
                    level: len(delta.encode(info, data, base, level=level) or data)
                    for level in ("fast", "small")
                }
                row["moved"] += info.nbytes
                row["xor"] += xor_planes(values, reference)
                row["entropy"] += bound
                row["fast"] += sizes["fast"]
                row["small"] += sizes["small"]
                row["worst"] = max(row["worst"], sizes["small"] / bound)
            else:
                row["alone"] += len(delta.encode(info, data, base) or data)
        row["kept"] = row["small"] + row["grown_kept"] + row["alone"]
        result.append(row)
    return result


def print_saving(rows_: list[dict[str, Any]]) -> bool:
    print("Saving by model and codec, as shares of the raw bytes of the tensors (over 100 KB) that")
    print("moved; `worst` is the tensor on which `small` is farthest from the entropy.")
    heads = ("model", "from", "MB", "moved", "xor+zstd3", "fast", "small", "entropy")
    print(
        "{:<20}{:<10}{:>6}{:>7}{:>11}{:>8}{:>8}{:>9}{:>8}{:>8}{:>8}{:>10}".format(
            *heads, "small/H", "worst", "planes", "kept"
        )
    )
    good = True
    for row in rows_:
        moved = row["moved"]
        share = [
            f"{row[k] / moved:.4f}" if moved else "-" for k in ("xor", "fast", "small", "entropy")
        ]
        above = (
            [f"{row['small'] / row['entropy']:.3f}", f"{row['worst']:.3f}"] if moved else ["-", "-"]
        )
        good &= row["worst"] <= 1.05
        print("{:<20}{:<10}{:>6.1f}{:>7.0%}{:>11}{:>8}{:>8}{:>9}{:>8}{:>8}{:>8.3f}{:>10.4f}".format(
            row["model"], row["parent"], row["raw"] / 1e6, moved / row["raw"], *share, *above,
            row["planes"] / row["raw"], row["kept"] / row["raw"]))  # fmt: skip
    grown = next(row for row in rows_ if row["grown"])
    print(
        f"rows: {grown['model']}'s grown embedding {grown['grown']:,} bytes, kept in "
        f"{grown['grown_kept']:,}"
    )
    total, kept_, moved = (sum(row[k] for row in rows_) for k in ("raw", "kept", "moved"))
    print(
        f"all: {total:,} bytes in tensors, kept in {kept_:,}, without the tensors that are the same"
    )
    print(
        f"`small` within 5% of the entropy on every tensor over 100 KB: {'yes' if good else 'NO'}"
    )
    return good


def best(work: Callable[[], object], rounds: int) -> float:
    """Seconds, the shortest of several."""
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def near_copy(nbytes: int, size: float) -> tuple[Tensor, Tensor]:
    """Normal weights in bf16, and the same moved by a relative `size`."""
    random, shape = np.random.default_rng(0), (nbytes // 2 // 1024, 1024)
    values = random.standard_normal(shape, np.float32)
    moved = values + np.float32(size) * random.standard_normal(shape, np.float32)
    info = TensorInfo("BF16", shape)
    return tuple(  # type: ignore[return-value]
        (info, memoryview(((v.view("<u4") + 0x8000) >> 16).astype("<u2").tobytes()))
        for v in (values, moved)
    )


def speed(pairs: list[tuple[Tensor, Tensor]], rounds: int) -> list[dict[str, Any]]:
    """Raw GB/s over pairs of (reference, tensor)."""
    total = sum(info.nbytes for _, (info, _) in pairs)
    source = np.ones(64 << 20, np.uint8)
    target = np.empty_like(source)
    memcpy = source.nbytes / best(lambda: np.copyto(target, source), rounds) / 1e9
    result = []
    for level in ("fast", "small"):
        for kept in (False, True):
            encode = decode = size = 0.0
            for (other, was), (info, data) in pairs:
                base, grouping = ("0" * 64, other, was), Grouping() if kept else None

                def make(base=base, info=info, data=data, grouping=grouping, level=level):  # type: ignore[no-untyped-def]
                    return delta.encode(info, data, base, level=level, grouping=grouping)

                file = memoryview(make())
                encode += best(make, rounds)
                decode += best(
                    lambda file=file, ref=(other, was), g=grouping: delta.decode(file, ref, 1, g),
                    rounds,
                )
                size += len(file)
            row = {"level": level, "grouping": "kept" if kept else "anew", "share": size / total}
            row |= {"encode": total / encode / 1e9, "decode": total / decode / 1e9}
            result.append(row | {"memcpy": memcpy})
    return result


def print_speed(title: str, found: list[dict[str, Any]]) -> bool:
    print(f"\nSpeed on one core: {title}; memcpy of 64 MB {found[0]['memcpy']:.1f} GB/s")
    print(
        f"{'level':<7}{'grouping':<10}{'share':>7}{'encode GB/s':>13}{'decode GB/s':>13}"
        f"{'encode/memcpy':>15}{'decode/memcpy':>15}  bar"
    )
    good = True
    for row in found:
        bars = {way: _LIMITS[row["level"], way] for way in ("encode", "decode")}
        met = all(row[way] >= bar for way, bar in bars.items())
        good &= met
        print(
            f"{row['level']:<7}{row['grouping']:<10}{row['share']:>7.3f}{row['encode']:>13.2f}"
            f"{row['decode']:>13.2f}{row['encode'] / row['memcpy']:>15.1%}"
            f"{row['decode'] / row['memcpy']:>15.1%}  {'met' if met else 'MISSED'}"
        )
    return good


def print_profile(rounds: int) -> None:
    """Where the time of decoding one chunk goes, step by step."""
    (info, was), (_, data) = near_copy(1 << 19, 0.03)
    reference, values = words(info, was), words(info, data)
    found = groups(BF16, reference)
    assert found.order is not None
    order = found.order.astype(np.intp)
    moved = difference(BF16, values, reference)
    entry, coded = pack(moved[order].astype(np.uint8))
    out = np.empty_like(values)

    def scatter() -> None:
        out[order] = moved

    steps: dict[str, Callable[[], object]] = {
        "group the reference (a sort by exponent)": lambda: groups(BF16, reference),
        "widen the order to NumPy's index type": lambda: found.order.astype(np.intp),  # type: ignore[union-attr]
        "Huffman-decode one byte each (zstd)": lambda: unpack(
            entry, memoryview(coded), len(values)
        ),
        "put back in place (scatter)": scatter,
        "add to the reference": lambda: restore(BF16, moved.copy(), reference, out),
    }
    print("\nProfile of `small`, nanoseconds a value (1.0 ns a value is 2.0 GB/s of bf16)")
    for name, work in steps.items():
        print(f"  {name:<45}{best(work, rounds) / len(values) * 1e9:>7.2f}")
    print("The sort and the scatter are NumPy's price; a compiled loop that keeps a cursor into")
    print("each group would need neither, and leave the Huffman decoder as the wall.")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    shared = Path(options.shared)
    print(
        f"{platform.platform()}, NumPy {np.__version__}, "
        f"zstd {'.'.join(map(str, zstandard.ZSTD_VERSION))}\n"
    )
    report: dict[str, Any] = {}
    good = True
    sets = {"64 MB of normal weights, moved by 3%": [near_copy(64 << 20, 0.03)]}
    if (shared / "family").is_dir():
        report["saving"] = saving(shared)
        good &= print_saving(report["saving"])
        old, new = (tensors(shared / "family" / name) for name in ("base", "math-full"))
        pairs = [(old[k], new[k]) for k in new if new[k][0].nbytes > LARGE]
        sets = {"math-full from base, tensors over 100 KB": pairs} | sets
    else:
        print(f"no models in {shared}: saving on real fine-tunes not measured")
    for title, pairs in sets.items():
        report[title] = speed(pairs, options.rounds)
        good &= print_speed(title, report[title])
    print_profile(options.rounds)
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
