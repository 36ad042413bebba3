"""``blockzoo export``: a model's original files, byte for byte."""

from __future__ import annotations

from pathlib import Path

import click

from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb


@verb("export")
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
@click.option("--overwrite", is_flag=True, help="Replace files that are there and differ.")
def command(app: App, names: tuple[str, ...], folder: Path, overwrite: bool) -> None:
    """Write every original file of NAME into FOLDER, byte for byte.

    Of several models each goes into a folder of its own, FOLDER/NAME.
    """
    zoo = app.zoo()
    targets = {name: folder / name if len(names) > 1 else folder for name in names}
    from blockzoo.team import Team

    # a wrong name stops it before anything is written
    total = sum(zoo.model(name).nbytes for name in names)
    with Team(total) as team, bar(app.output) as progress:
        files = [
            path
            for name, target in targets.items()
            for path in zoo.export(name, target, overwrite=overwrite, team=team, progress=progress)
        ]
    paths = [str(path) for path in files]
    size = sum(path.stat().st_size for path in files)
    from blockzoo.explore.values import format_bytes

    app.output.record(
        {"names": list(names), "folder": str(folder), "files": paths, "bytes": size},
        f"{len(paths)} files, {format_bytes(size)}, in {folder}",
        ids=paths,
    )
