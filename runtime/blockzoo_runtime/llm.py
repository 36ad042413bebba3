"""The front door: many models of one zoo, answering from one set of tensors.

Requests of a call are checked before any runs; those of one model run as one batch, one model
after another, and come back in the order they were given. Names are looked up in the zoo at
each call, so a model ingested or replaced meanwhile is served at the next.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from blockzoo.errors import BlockzooError, UsageError
from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import format_bytes
from blockzoo.zoo import Zoo
from blockzoo_runtime.blocks.resident import ResidentTensors, parse_bytes
from blockzoo_runtime.engine.batch import run
from blockzoo_runtime.engine.request import Completion, Piece, Prompt, Request, Sampling
from blockzoo_runtime.engine.row import Row
from blockzoo_runtime.tenant import Tenant, Tenants, parse_dtype

Asked = Request | tuple[str, Prompt]

_MEMORY = (
    Column("model"),
    Column("digest", kind="digest"),
    Column("dtype"),
    Column("tensors", kind="int"),
    Column("bytes", "uses", kind="bytes"),
    Column("resident_bytes", "resident", kind="bytes"),
    Column("shared_bytes", "shared", kind="bytes"),
)


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
        A budget for resident tensors, such as ``"8GiB"``, or bytes. None: no limit.
    max_batch : int
        How many requests of one model run at once.

    Raises
    ------
    NoZooError
    UsageError
        For a device, dtype or amount of memory that does not exist.

    Notes
    -----
    May be used from several threads; steps take turns.
    """

    def __init__(
        self,
        zoo: Zoo | Path | str,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "auto",
        memory: str | int | None = None,
        *,
        max_batch: int = 64,
    ) -> None:
        if max_batch < 1:
            raise UsageError(f"max_batch is {max_batch}, not 1 or more")
        self.zoo = zoo if isinstance(zoo, Zoo) else Zoo(zoo, create=False)
        self.device = _device(device)
        self._max_batch = max_batch
        self._resident = ResidentTensors(self.zoo.tensor, self.device, parse_bytes(memory))
        own = isinstance(dtype, str) and dtype == "auto"
        self._tenants = Tenants(self.zoo, self._resident, None if own else parse_dtype(str(dtype)))

    def generate(self, requests: Iterable[Asked], **sampling: Any) -> list[Completion]:
        """Answer requests, of any mixture of models.

        Parameters
        ----------
        requests : iterable of (name, prompt) or Request
            A prompt is text, token ids, or chat messages.
        **sampling
            The values of `Sampling` for requests that do not bring their own: max_new_tokens,
            temperature, top_k, top_p, seed, stop, ignore_eos, logprobs.

        Returns
        -------
        list of Completion
            In the order of the requests.

        Raises
        ------
        NotFoundError, UnservableError, UsageError
            By name, before anything runs.
        """
        prepared = self._prepare(requests, _sampling(sampling))
        completions: dict[int, Completion] = {}
        for tenant, rows in _by_tenant(prepared):
            for row, text in run(tenant, rows, self._max_batch):
                piece = row.piece(text, tenant.digest, tenant.blocks)
                if piece.completion is not None:
                    completions[row.index] = piece.completion
        return [completions[index] for index in range(len(prepared))]

    def stream(self, request: Asked, **sampling: Any) -> Iterator[Piece]:
        """Answer one request, token by token; the last piece has the whole completion.

        Parameters and errors are `generate`'s; errors come with the call, not the first piece.
        """
        [(tenant, row)] = self._prepare([request], _sampling(sampling))
        return (
            row.piece(text, tenant.digest, tenant.blocks)
            for _, text in run(tenant, [row], self._max_batch)
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all resident tensors."""
        return self._resident.nbytes

    def memory(self) -> Table:
        """What is resident, by model; bytes that several of them use count once in the note."""
        loaded = [tenant for _, tenant in self._tenants]
        users: dict[Any, int] = {}
        for tenant in loaded:
            for key in tenant.needs:
                users[key] = users.get(key, 0) + 1
        rows = []
        for tenant in loaded:
            here = {key: size for key, size in tenant.needs.items() if key in self._resident}
            rows.append(
                {
                    "model": ", ".join(self._tenants.names(tenant.digest)),
                    "digest": tenant.digest,
                    "dtype": str(tenant.dtype).removeprefix("torch."),
                    "tensors": len(tenant.needs),
                    "bytes": sum(tenant.needs.values()),
                    "resident_bytes": sum(here.values()),
                    "shared_bytes": sum(size for key, size in here.items() if users[key] > 1),
                }
            )
        budget = self._resident.budget
        limit = f" of {format_bytes(budget)}" if budget is not None else ""
        note = f"{len(self._resident):,} tensors, {format_bytes(self.nbytes)}{limit} resident"
        return Table("memory", _MEMORY, rows, f"{note} on {self.device}")

    def __repr__(self) -> str:
        return f"LLM({str(self.zoo.path)!r}, device={str(self.device)!r})\n{self.memory()!r}"

    def _prepare(self, requests: Iterable[Asked], shared: Sampling) -> list[tuple[Tenant, Row]]:
        prepared = []
        for index, asked in enumerate(requests):
            request = asked if isinstance(asked, Request) else Request(*_pair(asked))
            sampling = request.sampling or shared
            tenant = self._tenants.get(request.model)
            try:
                prompt = tenant.encode(request.prompt)
                most = tenant.room(len(prompt), sampling.max_new_tokens)
                if sampling.stops and tenant.tokenizer is None:
                    raise UsageError("stop strings need a tokenizer, and it has none")
            except BlockzooError as error:
                named = f"{request.model}: {error.message}"
                raise type(error)(named, hint=error.hint) from error
            decode = tenant.tokenizer.decode if tenant.tokenizer else None
            row = Row(
                index, request.model, prompt, sampling, most, tenant.eos, decode, tenant.process
            )
            prepared.append((tenant, row))
        return prepared


def _by_tenant(prepared: list[tuple[Tenant, Row]]) -> list[tuple[Tenant, list[Row]]]:
    grouped: dict[str, tuple[Tenant, list[Row]]] = {}
    for tenant, row in prepared:
        grouped.setdefault(tenant.digest, (tenant, []))[1].append(row)
    return list(grouped.values())


def _sampling(values: dict[str, Any]) -> Sampling:
    known = {field.name for field in dataclasses.fields(Sampling)}
    if unknown := sorted(set(values) - known):
        raise UsageError(
            f"there is no sampling value {', '.join(unknown)}",
            hint=f"there are {', '.join(sorted(known))}",
        )
    return Sampling(**values)


def _pair(asked: Any) -> tuple[str, Prompt]:
    if not isinstance(asked, (tuple, list)) or len(asked) != 2 or not isinstance(asked[0], str):
        raise UsageError(
            f"a request is (name, prompt) or a Request, not {type(asked).__name__}",
            hint='such as llm.generate([("acme/sql", "Question: …")])',
        )
    return asked[0], asked[1]


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise UsageError(f"there is no device {str(device)!r}: {first}") from error
    return found
