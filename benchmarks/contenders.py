"""Ways to serve a batch of requests for several tenants, each behind one call.

A contender takes ``[(tenant, token ids)]`` and gives every request's new tokens, greedy, exactly
as many as asked for. All prompts of a call have one length, so no contender pads. Adapters are
computed in the base's dtype everywhere (PEFT's own choice, float32 beside bf16, is slower).
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from blockzoo_runtime import LLM
from tenants import Family

Requests = Sequence[tuple[str, Sequence[int]]]
Serve = Callable[[Requests, int], list[list[int]]]


def load(family: Family, name: str, dtype: torch.dtype, *, merged: bool = False) -> Any:
    """A tenant as transformers or PEFT load it; ``merged``: an adapter in its base's weights."""
    import peft
    import transformers

    adapted = (family.folder / name / "adapter_config.json").exists()
    folder = family.folder / ("base" if adapted else name)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if adapted:
        model = peft.PeftModel.from_pretrained(
            model, str(family.folder / name), autocast_adapter_dtype=False
        ).to(dtype)
        if merged and hasattr(model.base_model, "merge_and_unload"):  # a prefix cannot be merged
            model = model.merge_and_unload()
    # all generate exactly what is asked for
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def generate(model: Any, ids: Sequence[Sequence[int]], new: int, **more: Any) -> list[list[int]]:
    """Greedy tokens of one model for prompts of one length: ``generate`` with its KV cache."""
    inputs = torch.tensor(ids, device=model.device)
    with torch.inference_mode():
        out = model.generate(
            input_ids=inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=new,
            do_sample=False,
            **more,
        )
    made: list[list[int]] = out[:, inputs.shape[1] :].tolist()
    return made


def ours(llm: LLM) -> Serve:
    """All requests in one call of the engine."""

    def serve(requests: Requests, new: int) -> list[list[int]]:
        done = llm.generate(list(requests), max_new_tokens=new, ignore_eos=True)
        return [list(completion.token_ids) for completion in done]

    return serve


def one_after_another(models: dict[str, Any]) -> Serve:
    """Every tenant's model is loaded already; each tenant's requests run as one batch."""
    return _by_tenant(lambda name, ids, new: generate(models[name], ids, new))


def swapping(family: Family, dtype: torch.dtype) -> Serve:
    """One model in memory at a time: each is loaded, runs its requests, and goes."""

    def serve_one(name: str, ids: list[Sequence[int]], new: int) -> list[list[int]]:
        model = load(family, name, dtype)
        made = generate(model, ids, new)
        del model
        gc.collect()
        return made

    return _by_tenant(serve_one)


def peft_mixed(family: Family, names: Sequence[str], dtype: torch.dtype) -> Serve:
    """PEFT's mixed batch: all adapters on one base, one named for each row. LoRA only."""
    import peft

    model = load(family, "base", dtype)
    for name in names:
        path = str(family.folder / name)
        if isinstance(model, peft.PeftModel):
            model.load_adapter(path, adapter_name=name, autocast_adapter_dtype=False)
        else:
            model = peft.PeftModel.from_pretrained(
                model, path, adapter_name=name, autocast_adapter_dtype=False
            )
    model = model.to(dtype).eval()

    def serve(requests: Requests, new: int) -> list[list[int]]:
        rows = [name for name, _ in requests]
        return generate(model, [ids for _, ids in requests], new, adapter_names=rows)

    return serve


def _by_tenant(serve_one: Callable[[str, list[Sequence[int]], int], list[list[int]]]) -> Serve:
    def serve(requests: Requests, new: int) -> list[list[int]]:
        places: dict[str, list[int]] = {}
        for i, (name, _) in enumerate(requests):
            places.setdefault(name, []).append(i)
        made: dict[int, list[int]] = {}
        for name, mine in places.items():
            made |= zip(mine, serve_one(name, [requests[i][1] for i in mine], new), strict=True)
        return [made[i] for i in range(len(requests))]

    return serve


def distinct_bytes(family: Family, names: Sequence[str], dtype: torch.dtype) -> int:
    """Bytes of the tensors of some models together, each distinct one once, in `dtype`."""
    return sum(_tensors(family, names, dtype).values())


def separate_bytes(family: Family, names: Sequence[str], dtype: torch.dtype) -> int:
    """Bytes of the same models, each by itself."""
    return sum(distinct_bytes(family, [name], dtype) for name in names)


def _tensors(family: Family, names: Sequence[str], dtype: torch.dtype) -> dict[str, int]:
    zoo = family.zoo
    return {
        ref.digest: ref.elements * dtype.itemsize
        for name in names
        for block in zoo.blocks_of(zoo.model(name)).values()
        for ref in block.tensors.values()
    }


def own_files(family: Family, name: str, base: str = "base") -> list[Path]:
    """The zoo's files with the tensors that a model has and its base has not."""
    zoo = family.zoo
    own = _tensors(family, [name], torch.float32).keys()
    own -= _tensors(family, [base], torch.float32).keys()
    found = (zoo.objects.find("tensors", digest) for digest in sorted(own))
    return [path for path in found if path is not None]
