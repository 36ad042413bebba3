"""``blockzoo run``: one prompt to one model, answered as it comes."""

from __future__ import annotations

import os
import sys

import click

from blockzoo.errors import UsageError
from blockzoo_cli.assembling import assembly_options
from blockzoo_cli.verb import App, verb


@verb("run")
@click.argument("name")
@click.option("-p", "--prompt", help="The text to go on from; read from stdin where absent.")
@click.option("--chat", is_flag=True, help="Put the prompt as a user's message.")
@click.option("--ids", is_flag=True, help="The prompt is token ids, separated by spaces.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), help="128, or what the context has room for."
)
@click.option("--temperature", type=click.FloatRange(min=0), default=0.0, show_default="0: greedy")
@click.option("--top-k", type=click.IntRange(min=1), help="Sample from the k likeliest tokens.")
@click.option("--top-p", type=click.FloatRange(0, 1), help="Sample from this share of probability.")
@click.option("--seed", type=int, help="Makes sampling repeatable.")
@click.option("--stop", multiple=True, help="Stop before this text; may be given several times.")
@click.option("--ignore-eos", is_flag=True, help="Go on past the model's end token.")
@click.option("--device", default="auto", show_default=True, help="Such as cpu or cuda:0.")
@click.option("--dtype", default="auto", show_default="the checkpoint's", help="Such as float32.")
@assembly_options
def command(
    app: App,
    name: str,
    prompt: str | None,
    chat: bool,
    ids: bool,
    max_new_tokens: int | None,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int | None,
    stop: tuple[str, ...],
    ignore_eos: bool,
    device: str,
    dtype: str,
    assembly: str,
    any_text: bool,
) -> None:
    """Let NAME go on from a prompt; the answer streams to stdout.

    With --json the answer comes at once, with its token ids and the blocks that made it; with
    -q only the token ids, one a line.
    """
    zoo = app.zoo()
    zoo.resolve(name)  # a wrong name is told before torch is loaded
    if chat and ids:
        raise UsageError("--chat and --ids exclude each other")
    if prompt is None:
        if sys.stdin.isatty():
            app.output.note("reading the prompt from stdin; Ctrl-D ends it")
        prompt = sys.stdin.read()

    # its warnings are for who wrote the checkpoint, not for who runs it
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

    from blockzoo_runtime import LLM, Prompt, Request, Sampling

    given: Prompt = prompt
    if chat:
        given = [{"role": "user", "content": prompt}]
    elif ids:
        given = _ids(prompt)
    sampling = Sampling(
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        seed=seed,
        stop=stop,
        ignore_eos=ignore_eos,
    )
    llm = LLM(zoo, device=device, dtype=dtype, assembly=assembly, any_text=any_text)
    stream = llm.stream(Request(name, given, sampling))
    if app.output.mode != "human":
        [completion] = [piece.completion for piece in stream if piece.completion]
        app.output.record(completion.to_json(), ids=map(str, completion.token_ids))
        return
    written = ""
    for piece in stream:
        app.output.text(piece.text)
        written += piece.text
        if piece.completion and not written:  # no tokenizer: the ids are all there is
            app.output.text(" ".join(map(str, piece.completion.token_ids)))
    app.output.text("\n")


def _ids(text: str) -> list[int]:
    try:
        return [int(word) for word in text.replace(",", " ").split()]
    except ValueError as error:
        raise UsageError(
            f"not token ids: {text!r}", hint="write numbers: --ids -p '1 17 42'"
        ) from error
