"""``blockzoo export``: a model's original files, byte for byte."""

from __future__ import annotations

from pathlib import Path

import click

from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb


@verb("export")
@click.argument("name")
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace files that are there and differ.")
def command(app: App, name: str, folder: Path, overwrite: bool) -> None:
    """Write every original file of NAME into FOLDER, byte for byte."""
    zoo = app.zoo()
    with bar(app.output) as progress:
        files = zoo.export(name, folder, overwrite=overwrite, progress=progress)
    paths = [str(path) for path in files]
    size = sum(path.stat().st_size for path in files)
    from blockzoo.explore.values import format_bytes

    app.output.record(
        {"name": name, "folder": str(folder), "files": paths, "bytes": size},
        f"{len(paths)} files, {format_bytes(size)}, in {folder}",
        ids=paths,
    )
