"""The front door: many models of one zoo, answering together from one set of tensors.

Requests of all callers run in one engine, whatever their models. Names are looked up in the zoo
at each request, so a model ingested or replaced meanwhile is served at the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, overload

import torch

from blockzoo.errors import UsageError
from blockzoo.explore.table import Table
from blockzoo.zoo import Zoo
from blockzoo_runtime.assembly.menu import EXACT, parse_assembly
from blockzoo_runtime.assembly.policy import Policy
from blockzoo_runtime.assembly.sparing import sparing
from blockzoo_runtime.blocks.profile import load_profile
from blockzoo_runtime.blocks.resident import ResidentTensors, parse_bytes
from blockzoo_runtime.device import find_device
from blockzoo_runtime.dtypes import parse_dtype
from blockzoo_runtime.engine.calls import OnError, Prepared, arun_all, prepare_all, run_all
from blockzoo_runtime.engine.engine import Engine
from blockzoo_runtime.engine.handle import Stream
from blockzoo_runtime.engine.holdings import holdings
from blockzoo_runtime.engine.job import Limits
from blockzoo_runtime.engine.prepare import Asked, Scorable, generation, sampling_of, scoring
from blockzoo_runtime.engine.request import Completion, Failed, Piece, Scored
from blockzoo_runtime.engine.sequence import Generation
from blockzoo_runtime.engine.stats import EngineStats
from blockzoo_runtime.kv.cache import KVCache
from blockzoo_runtime.kv.memory import Memory
from blockzoo_runtime.tenants import Tenants


class LLM:
    """Serves the models of a zoo.

    Parameters
    ----------
    zoo : Zoo, Path or str
    device : str or torch.device
        ``"auto"``: CUDA where there is one, else the CPU.
    dtype : str or torch.dtype
        What floats are computed in; ``"auto"``: each checkpoint's own.
    memory : str or int, optional
        A budget for weights and KV together, such as ``"8GiB"``, or bytes. None: no limit.
    max_batch : int
        How many requests run in one step.
    max_step_tokens : int
        How many tokens of prompts are computed in one step, beside one of each other request.
    max_waiting : int
        How many requests of one model may wait before more are refused.
    assembly : str
        Which chains may serve a request that does not say: ``"exact"``, or ``"at_most:A"``,
        ``"at_most:B"``, ``"at_most:C"``: the exact chain or one that is certified with this grade
        or a better one, whichever is cheapest now.
    any_text : bool
        Let certificates count that name no text of the model's own domain, too.
    policy : Policy
        What is cheapest; see `assembly.policy`.

    Raises
    ------
    NoZooError
    UsageError
        For a device, dtype or amount that does not exist.

    Notes
    -----
    May be used from any threads and from asyncio, at once. Use it as a context manager, or call
    `close`, to give its memory back at a known time.
    """

    def __init__(
        self,
        zoo: Zoo | Path | str,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        memory: str | int | None = None,
        *,
        max_batch: int = 64,
        max_step_tokens: int = 512,
        max_waiting: int = 1024,
        assembly: str = EXACT,
        any_text: bool = False,
        policy: Policy = sparing,
    ) -> None:
        parse_assembly(assembly)
        self.assembly = assembly
        limits = {"max_batch": max_batch, "max_step_tokens": max_step_tokens,
                  "max_waiting": max_waiting}  # fmt: skip
        for name, value in limits.items():
            if value < 1:
                raise UsageError(f"{name} is {value}, not 1 or more")
        self.zoo = zoo if isinstance(zoo, Zoo) else Zoo(zoo, create=False)
        self.device = find_device(device)
        budget = Memory(parse_bytes(memory))
        self._kv = KVCache(budget, self.device)
        self._resident = ResidentTensors(self.zoo.tensor, self.device, budget)
        own = isinstance(dtype, str) and dtype == "auto"
        compute = None if own else parse_dtype(str(dtype))
        self._tenants = Tenants(self.zoo, self._resident, compute, any_text)
        self._engine = Engine(
            self._resident,
            self._kv,
            Limits(max_batch, max_step_tokens, max_waiting),
            self._tenants.knows,
            partial(load_profile, self.zoo, self.device),
            policy,
        )

    @overload
    def generate(
        self,
        requests: Iterable[Asked],
        *,
        on_error: Literal["raise"] = ...,
        assembly: str | None = None,
        **sampling: Any,
    ) -> list[Completion]: ...
    @overload
    def generate(
        self,
        requests: Iterable[Asked],
        *,
        on_error: Literal["return"],
        assembly: str | None = None,
        **sampling: Any,
    ) -> list[Completion | Failed]: ...
    def generate(
        self,
        requests: Iterable[Asked],
        *,
        on_error: OnError = "raise",
        assembly: str | None = None,
        **sampling: Any,
    ) -> Any:
        """Answer requests, of any mixture of models.

        Parameters
        ----------
        requests : iterable of (name, prompt) or Request
            A prompt is text, token ids, or chat messages.
        on_error : {"raise", "return"}
            Whether the first request that fails ends the call, or has a `Failed` among the
            results.
        assembly : str, optional
            Which chains may serve those that do not say; the engine's where None.
        **sampling
            The values of `Sampling` for requests that do not bring their own: max_new_tokens,
            temperature, top_k, top_p, min_p, repetition_penalty, frequency_penalty,
            presence_penalty, seed, stop, ignore_eos, logprobs.

        Returns
        -------
        list of Completion
            In the order of the requests.

        Raises
        ------
        NotFoundError, UnservableError, UsageError
            By name; what can be known before anything runs is raised before anything runs.
        """
        prepared = self._generations(requests, sampling, assembly, on_error)
        return run_all(self._engine, prepared, on_error)

    @overload
    def score(
        self,
        texts: Iterable[Scorable],
        *,
        on_error: Literal["raise"] = ...,
        assembly: str | None = None,
    ) -> list[Scored]: ...
    @overload
    def score(
        self,
        texts: Iterable[Scorable],
        *,
        on_error: Literal["return"],
        assembly: str | None = None,
    ) -> list[Scored | Failed]: ...
    def score(
        self,
        texts: Iterable[Scorable],
        *,
        on_error: OnError = "raise",
        assembly: str | None = None,
    ) -> Any:
        """How likely models find texts, token by token.

        Parameters
        ----------
        texts : iterable of (name, text) or (name, prompt, continuation)
            Each text, prompt or continuation as text or as token ids. Of (name, text) every
            token but the first is scored; of the other only the continuation's.
        on_error : {"raise", "return"}
        assembly : str, optional
            As in `generate`, whose errors may come too.

        Returns
        -------
        list of Scored
            In the order of the texts.
        """
        use = assembly or self.assembly
        parse_assembly(use)
        prepared = prepare_all(lambda one: scoring(self._tenants, one, use), texts, on_error)
        return run_all(self._engine, prepared, on_error)

    def stream(
        self, request: Asked, *, assembly: str | None = None, **sampling: Any
    ) -> Iterator[Piece]:
        """Answer one request, token by token; the last piece has the whole completion.

        Parameters and errors are `generate`'s; those known at once come with the call, not the
        first piece. Letting go of the iterator cancels the request.

        Raises
        ------
        BusyError
            Where too many requests for the model wait already.
        """
        one = self._streamed(request, sampling, assembly)
        self._engine.submit(one)
        return Stream(one.handle)

    @overload
    async def agenerate(
        self,
        requests: Iterable[Asked],
        *,
        on_error: Literal["raise"] = ...,
        assembly: str | None = None,
        **sampling: Any,
    ) -> list[Completion]: ...
    @overload
    async def agenerate(
        self,
        requests: Iterable[Asked],
        *,
        on_error: Literal["return"],
        assembly: str | None = None,
        **sampling: Any,
    ) -> list[Completion | Failed]: ...
    async def agenerate(
        self,
        requests: Iterable[Asked],
        *,
        on_error: OnError = "raise",
        assembly: str | None = None,
        **sampling: Any,
    ) -> Any:
        """`generate` for asyncio; a task that is cancelled cancels its requests.

        Raises
        ------
        BusyError
            Where too many requests for a model wait already: it does not wait for room.
        """
        asked = list(requests)
        prepared = await asyncio.to_thread(self._generations, asked, sampling, assembly, on_error)
        return await arun_all(self._engine, prepared, on_error)

    async def astream(
        self, request: Asked, *, assembly: str | None = None, **sampling: Any
    ) -> AsyncIterator[Piece]:
        """`stream` for asyncio; closing the generator cancels the request."""
        one = await asyncio.to_thread(self._streamed, request, sampling, assembly)
        self._engine.submit(one)
        try:
            async for piece in one.handle.pieces():
                yield piece
        finally:
            one.handle.cancel()

    def load(self, name: str, *, pin: bool = False) -> None:
        """Bring a model's weights in before anybody asks for it.

        Parameters
        ----------
        name : str
        pin : bool
            Whether they stay until `unpin`, whoever else needs the memory.
        """
        tenant = self._tenants.get(name)
        self._resident.load(tenant.digest, tenant.needs)
        if pin:
            self._engine.pin(tenant)

    def unpin(self, name: str) -> None:
        """Let a model's weights go when others need the memory."""
        self._engine.unpin(self._tenants.get(name))

    @property
    def nbytes(self) -> int:
        """Bytes of all resident tensors, without KV."""
        return self._resident.nbytes

    def stats(self, *, reset: bool = False) -> EngineStats:
        """What the engine has done.

        Parameters
        ----------
        reset : bool
            Whether to count from zero afterwards.
        """
        by_model = {row["model"]: row["resident_bytes"] for row in self.memory()}
        return self._engine.stats(by_model, reset=reset)

    def memory(self) -> Table:
        """What is in memory, by model; bytes that several of them use count once in the note."""
        return holdings(self._tenants, self._resident, self._kv.stats(), self._engine.kv_bytes())

    def close(self) -> None:
        """End the engine; requests that have not ended fail."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"LLM({str(self.zoo.path)!r}, device={str(self.device)!r})\n{self.memory()!r}"

    def _streamed(
        self, request: Asked, sampling: dict[str, Any], assembly: str | None
    ) -> Generation:
        shared = sampling_of(sampling)
        return generation(self._tenants, request, shared, True, assembly or self.assembly)

    def _generations(
        self,
        requests: Iterable[Asked],
        sampling: dict[str, Any],
        assembly: str | None,
        on_error: OnError,
    ) -> Prepared:
        shared, use = sampling_of(sampling), assembly or self.assembly
        parse_assembly(use)
        return prepare_all(
            lambda asked: generation(self._tenants, asked, shared, assembly=use), requests, on_error
        )
