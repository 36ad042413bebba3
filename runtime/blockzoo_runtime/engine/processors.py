"""What a model's generation_config.json does to logits, by transformers' own processors.

Sampling values in it (temperature, top_k, …) are not taken: requests bring their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from blockzoo.errors import UnservableError

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
    process = Process(config, device)
    return process if process else None


class Process:
    """Processors that act on logits in transformers' order.

    Parameters
    ----------
    config : mapping
        Keys of a generation config; others than `_PROCESSORS` are ignored.
    device : torch.device
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        self._device = device
        self._asked = {
            key: config[key]
            for key in (*_PROCESSORS, "eos_token_id")
            if config.get(key) is not None and config[key] != _WITHOUT_EFFECT.get(key)
        }
        self._made = [
            self._make(key, self._asked[key]) for key in _PROCESSORS if key in self._asked
        ]

    def __bool__(self) -> bool:
        return bool(self._made)

    def __call__(self, ids: list[int], logits: torch.Tensor) -> torch.Tensor:
        """Scores (V,) from logits (V,) float32 after all the tokens so far."""
        tokens, scores = torch.tensor([ids], device=logits.device), logits[None]
        for processor in self._made:
            scores = processor(tokens, scores)
        return scores[0]

    def with_penalty(self, repetition: float) -> Process:
        """The same, with a request's own repetition penalty."""
        return Process(self._asked | {"repetition_penalty": float(repetition)}, self._device)

    def _make(self, key: str, value: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
        from transformers.generation import logits_process

        kind = getattr(logits_process, _PROCESSORS[key])
        if key == "bad_words_ids":
            made = kind(value, eos_token_id=self._asked.get("eos_token_id"))
        elif key == "suppress_tokens":
            made = kind(value, device=self._device)
        else:
            made = kind(value)
        return made  # type: ignore[no-any-return]
