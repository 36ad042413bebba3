"""``blockzoo assemble``: a model of other models' layers, in mergekit's words."""

from __future__ import annotations

from pathlib import Path

import click

from blockzoo.errors import UsageError
from blockzoo_cli.progress import bar
from blockzoo_cli.verb import App, verb

_FILE = click.Path(path_type=Path)


@verb("assemble")
@click.argument("recipe", required=False, type=_FILE, metavar="[RECIPE.yaml]")
@click.option("--name", help="What the new model is called.")
@click.option("--print", "printed", metavar="NAME", help="Print the recipe that makes NAME.")
@click.option(
    "--certify", "against", metavar="MODEL",
    help="Certify it as a stand-in for MODEL, which has as many layers.",
)  # fmt: skip
@click.option(
    "--text", "texts", multiple=True, type=_FILE, metavar="FILE",
    help="Held-out text to certify on, a file for each domain. May be repeated.",
)  # fmt: skip
@click.option("--own", type=_FILE, metavar="FILE", help="Text of MODEL's own domain.")
def command(
    app: App,
    recipe: Path | None,
    name: str | None,
    printed: str | None,
    against: str | None,
    texts: tuple[Path, ...],
    own: Path | None,
) -> None:
    r"""Make a model of other models' layers; no tensor is written.

    \b
    slices:
    - sources: [{model: base, layer_range: [0, 4]}]   # layers 0 to 3
    - sources: [{model: acme/sql, layer_range: [4, 8]}]
    merge_method: passthrough

    As in mergekit, the embedding is the first model's, the head the last's, config and tokenizer
    those of base_model, or of the first. What cannot be done exactly is refused.
    """
    if printed is not None:
        if recipe or name or against or texts or own:
            raise click.UsageError("--print stands alone")
        text = app.zoo().recipe(printed)
        app.output.record({"name": printed, "recipe": text}, text.rstrip("\n"), ids=[printed])
        return
    if recipe is None or name is None:
        raise click.UsageError("give RECIPE.yaml and --name NAME, or --print NAME")
    if bool(against) != bool(texts or own):
        raise click.UsageError("--certify MODEL and --text FILE go together")
    zoo = app.zoo()
    if against:
        zoo.resolve(against)  # a wrong name is told before anything is made
    done = zoo.assemble(recipe, name)
    layers = sum(hop.kind in ("attention", "layer") for hop in zoo.model(name).chain)
    data: dict[str, object] = {
        "name": name,
        "digest": done.digest,
        "layers": layers,
        "bytes": done.bytes,
        "notes": list(done.notes),
    }
    lines = [f"{name} is {done.digest[:12]}, of {layers} layers", *done.notes]
    if against is None:
        app.output.record(data, *lines, ids=[name])
        return
    _check_places(app, name, against)
    with bar(app.output, counted=True) as progress:
        record = zoo.certify(against, f"*={name}", list(texts), own=own, progress=progress)
    data["record"] = {"digest": record.digest, **record.to_json()}
    app.output.record(data, *lines, record.heading(), record.table(), ids=[name])
    click.get_current_context().exit(0 if record.judgement.at_least("B") else 1)


def _check_places(app: App, name: str, against: str) -> None:
    hops = [[hop.name for hop in app.zoo().model(one).chain] for one in (name, against)]
    if hops[0] != hops[1]:
        raise UsageError(
            f"{name} is made, but cannot be certified: {against} has other layers than it",
            hint="a certificate tells what a swap does, hop for hop",
        )
