"""``blockzoo profile``: how fast each kind of block runs on this device."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from blockzoo.errors import UsageError
from blockzoo_cli.verb import App, verb

if TYPE_CHECKING:
    from blockzoo.zoo import Zoo


@verb("profile")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option("--device", default="auto", show_default=True, help="Such as cpu or cuda:0.")
@click.option("--dtype", default="auto", show_default="each checkpoint's", help="Such as float32.")
@click.option(
    "--largest", type=click.IntRange(1, 4096), default=512, show_default=True,
    help="The largest batch, in tokens.",
)  # fmt: skip
def command(app: App, names: tuple[str, ...], device: str, dtype: str, largest: int) -> None:
    """Measure each kind of block of NAMEs, or of all models, by batch size.

    Shows bytes, floating point operations, latencies, and the knee: the smallest batch whose
    tokens per second are within 10% of the best. The zoo keeps the figures in cache/profiles,
    and serving goes by them. Let the machine be idle meanwhile.
    """
    zoo = app.zoo()
    chosen = list(names) or _servable(zoo)
    for name in chosen:
        zoo.resolve(name)  # a wrong name is told before torch is loaded
    if not chosen:
        raise UsageError("there is no model here that can be run", hint="blockzoo ingest adds one")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    import torch
    from blockzoo_runtime.blocks.measuring import measure
    from blockzoo_runtime.blocks.profile import SIZES, store_profile
    from blockzoo_runtime.device import find_device
    from blockzoo_runtime.dtypes import own_dtype, parse_dtype

    where = find_device(device)
    by_dtype: dict[torch.dtype, list[str]] = {}
    for name in chosen:
        model = zoo.model(name)
        base = zoo.model(model.base) if model.base else model
        own = own_dtype(zoo.config(base), base, zoo.blocks_of(base))
        by_dtype.setdefault(own if dtype == "auto" else parse_dtype(dtype), []).append(name)
    sizes = [size for size in SIZES if size < largest] + [largest]
    profiles = []
    for kind, alike in by_dtype.items():
        found = measure(zoo, alike, where, kind, sizes=sizes, tell=app.output.note)
        app.output.note(f"kept in {store_profile(zoo, found)}")
        profiles.append(found)
    tables = [profile.table() for profile in profiles]
    shown = [part for table in tables for part in (table, "")][:-1]
    ids = [f"{b.kind} {b.knee}" for profile in profiles for b in profile.blocks.values()]
    app.output.record({"profiles": [p.to_json() for p in profiles]}, *shown, ids=ids)


def _servable(zoo: Zoo) -> list[str]:
    """One name of each model that is no adapter, not stitched of others, and can be run."""
    found: dict[str, str] = {}
    for name in zoo.names():
        digest = zoo.resolve(name)
        model = zoo.model(digest)
        whole = model.kind == "model" and all(hop.kind != "stitch" for hop in model.chain)
        if whole and not zoo.why_not_served(model):
            found.setdefault(digest, name)
    return list(found.values())
