"""From what a caller asks to what the engine runs: names looked up, prompts tokenized, checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from blockzoo.errors import BlockzooError, UsageError
from blockzoo_runtime.assembly.menu import EXACT
from blockzoo_runtime.engine.request import Prompt, Request, Sampling
from blockzoo_runtime.engine.sequence import Generation, Scoring
from blockzoo_runtime.tenant import Tenant
from blockzoo_runtime.tenants import Tenants

Asked = Request | tuple[str, Prompt]
Text = str | Sequence[int]
Scorable = tuple[str, Text] | tuple[str, Text, Text]


def sampling_of(values: dict[str, Any]) -> Sampling:
    """Keyword arguments as a `Sampling`.

    Raises
    ------
    UsageError
    """
    known = {field.name for field in dataclasses.fields(Sampling)}
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"there is no sampling value {', '.join(unknown)}",
            hint=f"there are {', '.join(sorted(known))}",
        )
    return Sampling(**values)


def generation(
    tenants: Tenants,
    asked: Asked,
    shared: Sampling,
    streamed: bool = False,
    assembly: str = EXACT,
) -> Generation:
    """A request for new tokens; `shared` and `assembly` are for what does not bring its own.

    Raises
    ------
    NotFoundError, UnservableError, UsageError
        By name.
    """
    request = asked if isinstance(asked, Request) else Request(*_pair(asked))
    menu = tenants.menu(request.model, request.assembly or assembly)
    with _naming(request.model):
        prompt = menu.exact.tenant.encode(request.prompt)
        return Generation(menu, request.model, prompt, request.sampling or shared, streamed)


def scoring(tenants: Tenants, asked: Scorable, assembly: str = EXACT) -> Scoring:
    """A request for the likelihood of a text, or of a continuation after a prompt.

    Raises
    ------
    NotFoundError, UnservableError, UsageError
        By name.
    """
    if not isinstance(asked, (tuple, list)) or len(asked) not in (2, 3):
        raise UsageError(
            "what is scored is (name, text) or (name, prompt, continuation), "
            f"not {type(asked).__name__}"
        )
    name, text, *rest = asked
    menu = tenants.menu(name, assembly)
    tenant = menu.exact.tenant
    with _naming(name):
        if not rest:
            return Scoring(menu, name, tenant.encode(text), 1)
        whole, first = _joined(tenant, text, rest[0])
        return Scoring(menu, name, whole, first)


def _joined(tenant: Tenant, prompt: Text, continuation: Text) -> tuple[list[int], int]:
    """A prompt with its continuation, and where that begins.

    Text is tokenized as a whole, with spaces before the continuation counted to it, as in
    EleutherAI's evaluation harness: a tokenizer may join what is next to each other.
    """
    if isinstance(prompt, str) != isinstance(continuation, str):
        raise UsageError("prompt and continuation are both text or both token ids")
    if isinstance(prompt, str) and isinstance(continuation, str):
        kept = prompt.rstrip()
        head = tenant.encode(kept) if kept else tenant.encode(prompt)
        return tenant.encode(prompt + continuation), len(head)
    head = tenant.encode(prompt)
    return head + tenant.encode(continuation), len(head)


@contextmanager
def _naming(name: str) -> Iterator[None]:
    """Errors begin with the name that was asked for."""
    try:
        yield
    except BlockzooError as error:
        raise type(error)(f"{name}: {error.message}", hint=error.hint) from error


def _pair(asked: Any) -> tuple[str, Prompt]:
    if not isinstance(asked, (tuple, list)) or len(asked) != 2 or not isinstance(asked[0], str):
        raise UsageError(
            f"a request is (name, prompt) or a Request, not {type(asked).__name__}",
            hint='such as llm.generate([("acme/sql", "Question: …")])',
        )
    return asked[0], asked[1]
