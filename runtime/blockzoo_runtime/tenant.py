"""A model ready to answer: its chain over resident tensors, its tokenizer, its limits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from blockzoo.errors import BlockzooError, UnservableError, UsageError
from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.modules import configuration
from blockzoo.execution.tensors import TORCH_DTYPES
from blockzoo.records import Block, Model
from blockzoo.zoo import Zoo
from blockzoo_runtime.blocks.resident import Key, ResidentTensors
from blockzoo_runtime.engine.processors import Process, processing
from blockzoo_runtime.engine.request import MAX_NEW_TOKENS, Prompt
from blockzoo_runtime.tokenizer import Tokenizer, Tokenizers

#: adapters whose virtual tokens stand before the padding: rows of other lengths would be heard
_PADDING_IS_HEARD = ("prompt_tuning", "p_tuning")
#: rotary embeddings that depend on the longest row of a batch
_LENGTH_IS_HEARD = ("dynamic", "longrope")


@dataclass(frozen=True)
class Tenant:
    """What serves the requests for one model.

    Parameters
    ----------
    digest : str
        The model's.
    model : Model
    chain : RunnableChain
    blocks : tuple of str
        Digests of the chain's blocks, each followed by its adapters.
    dtype : torch.dtype
        Of the computation.
    device : torch.device
    resident : ResidentTensors
    needs : dict
        The tensors that a step uses, with their resident bytes.
    plain : tuple of Key
        Those of them that are used as they are stored.
    tokenizer : Tokenizer or None
    eos : frozenset of int
    process : callable or None
        See `processors`.
    vocabulary : int
        How many token ids there are.
    context : int or None
        How many tokens fit.
    equal_lengths : bool
        Whether only rows of one length may share a batch.
    """

    digest: str
    model: Model
    chain: RunnableChain
    blocks: tuple[str, ...]
    dtype: torch.dtype
    device: torch.device
    resident: ResidentTensors
    needs: dict[Key, int]
    plain: tuple[Key, ...]
    tokenizer: Tokenizer | None
    eos: frozenset[int]
    process: Process | None
    vocabulary: int
    context: int | None
    equal_lengths: bool

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """One step: logits (B, 1, V) float32 after tokens (B, T); the cache grows by T."""
        with self.resident.using(self.needs, self.plain):
            return self.chain.forward(input_ids, attention_mask, cache, logits_to_keep=1)

    def encode(self, prompt: Prompt) -> list[int]:
        """A prompt's token ids.

        Raises
        ------
        UsageError
            For text without a tokenizer, messages without a chat template, ids outside the
            vocabulary, or nothing at all.
        """
        ids = self._ids(prompt)
        if not ids:
            raise UsageError("the prompt is empty", hint="give at least one token")
        if wrong := [i for i in ids if not 0 <= i < self.vocabulary]:
            raise UsageError(
                f"token id {wrong[0]} is not in the vocabulary of {self.vocabulary:,} tokens"
            )
        return ids

    def _ids(self, prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            items = list(prompt)
            if not items or not isinstance(items[0], Mapping):
                return _integers(items)
        if self.tokenizer is None:
            raise UsageError(
                "it has no tokenizer, neither has its base" if self.model.base
                else "it has no tokenizer",
                hint="give the prompt as token ids: [1, 17, 42], or --ids -p '1 17 42'",
            )  # fmt: skip
        if isinstance(prompt, str):
            return self.tokenizer.encode(prompt)
        return self.tokenizer.encode_chat(items)  # type: ignore[arg-type]

    def room(self, prompt: int, wanted: int | None) -> int:
        """How many tokens to generate after a prompt of so many.

        Parameters
        ----------
        prompt : int
        wanted : int or None
            None: `MAX_NEW_TOKENS`, or fewer where the context ends before.

        Raises
        ------
        UsageError
            Where what is wanted does not fit the context.
        """
        if self.context is None:
            return wanted or MAX_NEW_TOKENS
        room = self.context - prompt
        if room < (wanted or 1):
            raise UsageError(
                f"{prompt} prompt tokens and {wanted or 1} new ones do not fit its context of "
                f"{self.context} tokens",
                hint=f"ask for at most {room} new tokens" if room > 0 else "shorten the prompt",
            )
        return wanted or min(room, MAX_NEW_TOKENS)


class Tenants:
    """The models of a zoo that have been asked for.

    Parameters
    ----------
    zoo : Zoo
    resident : ResidentTensors
    dtype : torch.dtype or None
        None: each checkpoint's own.
    """

    def __init__(self, zoo: Zoo, resident: ResidentTensors, dtype: torch.dtype | None) -> None:
        self._zoo = zoo
        self._resident = resident
        self._dtype = dtype
        self._tokenizers = Tokenizers(zoo)
        self._loaded: dict[str, Tenant] = {}
        self._names: dict[str, str] = {}

    def __iter__(self) -> Any:
        return iter(self._loaded.items())

    def names(self, digest: str) -> list[str]:
        """The names by which a loaded model was last asked for."""
        return sorted(name for name, meant in self._names.items() if meant == digest)

    def get(self, name: str) -> Tenant:
        """The tenant that a name means now.

        Raises
        ------
        NotFoundError
        UnservableError
            Where the model cannot be run exactly; the message names the model and why.
        """
        digest = self._zoo.resolve(name)
        before = self._names.get(name)
        if digest not in self._loaded:
            try:
                self._loaded[digest] = self._load(digest)
            except BlockzooError as error:
                raise type(error)(f"{name}: {error.message}", hint=error.hint) from error
            self._resident.hold(self._loaded[digest].needs)
        self._names[name] = digest
        if before and before != digest and not self.names(before):
            self._resident.release(self._loaded.pop(before).needs)
        return self._loaded[digest]

    def _load(self, digest: str) -> Tenant:
        zoo = self._zoo
        model = zoo.model(digest)
        if model.detached:
            wants = f" {model.wants!r}" if model.wants else ""
            raise UnservableError(
                f"it is an adapter, and its base model{wants} is not in the zoo",
                hint="ingest the base, then the adapter again (with --base NAME)",
            )
        base = zoo.model(model.base) if model.base else None
        config = zoo.config(base or model)
        blocks = zoo.blocks_of(model)
        dtype = self._dtype or own_dtype(config, model, blocks)
        source = self._resident.source(dtype)
        chain = RunnableChain(model, blocks, config, source)
        full = configuration(config["model_type"], config)
        generation = zoo.file(base or model, "generation_config.json")
        asked = json.loads(bytes(generation)) if generation is not None else None
        eos = (
            asked.get("eos_token_id") if asked is not None else getattr(full, "eos_token_id", None)
        )
        limits = [_context(full), chain.max_positions]
        return Tenant(
            digest=digest,
            model=model,
            chain=chain,
            blocks=tuple(part for hop in model.chain for part in (hop.block, *hop.adapters)),
            dtype=dtype,
            device=self._resident.device,
            resident=self._resident,
            needs={
                (ref.digest, dtype): ref.elements * dtype.itemsize
                if TORCH_DTYPES[ref.dtype].is_floating_point
                else ref.nbytes
                for ref in chain.refs()
            },
            plain=tuple(dict.fromkeys((ref.digest, dtype) for ref in chain.plain_refs())),
            tokenizer=self._tokenizers.of(model, base),
            eos=frozenset([eos] if isinstance(eos, int) else eos or ()),
            process=processing(asked or {}, self._resident.device),
            vocabulary=full.vocab_size,
            context=min((n for n in limits if isinstance(n, int)), default=None),
            equal_lengths=model.family in _PADDING_IS_HEARD
            or any(kind in _LENGTH_IS_HEARD for kind in _rope_types(full)),
        )


def _context(config: Any) -> int | None:
    """How many tokens a model is meant for; dynamic rotary scaling stretches the config's."""
    most = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if most is not None and rope.get("rope_type") == "dynamic":
        return int(most * rope["factor"])
    return most


def _rope_types(config: Any) -> list[str]:
    """The kinds of rotary embedding of a model: one, or one for each kind of attention."""
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(value for value in parameters.values() if isinstance(value, Mapping))]
    return [kind for one in each if isinstance(kind := one.get("rope_type"), str)]


def own_dtype(config: Mapping[str, Any], model: Model, blocks: Mapping[str, Block]) -> torch.dtype:
    """The dtype a checkpoint is meant to be computed in: its config's, else its tensors'."""
    named = config.get("dtype", config.get("torch_dtype"))
    if isinstance(named, str):
        return parse_dtype(named)
    sizes: dict[torch.dtype, int] = {}
    for hop in model.chain:
        for ref in blocks[hop.block].tensors.values():
            dtype = TORCH_DTYPES.get(ref.dtype)
            if dtype is not None and dtype.is_floating_point and dtype.itemsize > 1:
                sizes[dtype] = sizes.get(dtype, 0) + ref.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def parse_dtype(name: str) -> torch.dtype:
    """``"bfloat16"`` or ``"torch.bfloat16"`` to torch's.

    Raises
    ------
    UsageError
        For anything else than a floating point dtype that can be computed in.
    """
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if dtype not in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        raise UsageError(
            f"{name!r} is no dtype to compute in",
            hint="use auto, float32, bfloat16, float16 or float64",
        )
    return dtype  # type: ignore[no-any-return]


def _integers(items: list[Any]) -> list[int]:
    import operator

    try:
        return [operator.index(item) for item in items]
    except TypeError:
        raise UsageError(
            "a prompt is text, token ids or chat messages, "
            f"not a list with {type(items[0]).__name__} in it"
        ) from None
