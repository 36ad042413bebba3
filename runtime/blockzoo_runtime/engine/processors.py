"""What a model's generation_config.json does to logits, by transformers' own processors.

Sampling values in it (temperature, top_k, …) are not taken: requests bring their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from blockzoo.errors import UnservableError

Process = Callable[[list[int], torch.Tensor], torch.Tensor]
"""``(all tokens so far, logits (V,)) -> scores (V,)``."""

#: keys and transformers' classes for them, in transformers' order
_PROCESSORS = {
    "sequence_bias": "SequenceBiasLogitsProcessor",
    "repetition_penalty": "RepetitionPenaltyLogitsProcessor",
    "no_repeat_ngram_size": "NoRepeatNGramLogitsProcessor",
    "bad_words_ids": "NoBadWordsLogitsProcessor",
    "suppress_tokens": "SuppressTokensLogitsProcessor",
}
_WITHOUT_EFFECT: dict[str, Any] = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0}

#: keys that would change the answer and are not applied, with the values that have no effect
_REFUSED: dict[str, tuple[Any, ...]] = {
    "min_length": (0,),
    "min_new_tokens": (0,),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "begin_suppress_tokens": (),
    "exponential_decay_length_penalty": (),
    "guidance_scale": (1, 1.0),
    "watermarking_config": (),
    "stop_strings": (),
    "remove_invalid_values": (False,),
    "renormalize_logits": (False,),
}


def processing(config: Mapping[str, Any], device: torch.device) -> Process | None:
    """The processing a generation config asks for; None where it asks for none.

    Raises
    ------
    UnservableError
        Where it asks for something that is not applied here.
    """
    for key, harmless in _REFUSED.items():
        if config.get(key) is not None and config[key] not in harmless:
            raise UnservableError(
                f"its generation_config.json sets {key} to {config[key]!r}, "
                "which is not applied here"
            )
    asked = {
        key: config[key]
        for key in _PROCESSORS
        if config.get(key) is not None and config[key] != _WITHOUT_EFFECT.get(key)
    }
    if not asked:
        return None
    from transformers.generation import logits_process

    made: list[Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = []
    for key, value in asked.items():
        kind = getattr(logits_process, _PROCESSORS[key])
        if key == "bad_words_ids":
            made.append(kind(value, eos_token_id=config.get("eos_token_id")))
        elif key == "suppress_tokens":
            made.append(kind(value, device=device))
        else:
            made.append(kind(value))

    def process(ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        tokens, scores = torch.tensor([ids], device=logits.device), logits[None]
        for processor in made:
            scores = processor(tokens, scores)
        return scores[0]

    return process
