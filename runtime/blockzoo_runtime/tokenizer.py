"""The tokenizers of a zoo's models, and what the runtime asks of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from blockzoo.errors import UsageError
from blockzoo.execution.tokenizer import load_tokenizer, tokenizer_files
from blockzoo.records import Model
from blockzoo.zoo import Zoo


class Tokenizer:
    """Text to token ids and back.

    Parameters
    ----------
    inner : transformers' tokenizer
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer adds by itself.

        Raises
        ------
        UsageError
            Where it does not take the text, such as half of a character.
        """
        return self._encode(text)

    def _encode(self, text: str, **options: Any) -> list[int]:
        try:
            return list(self._inner(text, **options)["input_ids"])
        except Exception as error:  # a tokenizer raises what it likes
            raise UsageError(f"its tokenizer does not take this text: {error}") from error

    def decode(self, ids: Sequence[int]) -> str:
        """Without special tokens."""
        text: str = self._inner.decode(list(ids), skip_special_tokens=True)
        return text

    def encode_chat(self, messages: Sequence[Mapping[str, Any]]) -> list[int]:
        """Messages through the model's chat template, up to where the answer begins.

        Raises
        ------
        UsageError
            Where there is no template, or it does not take these messages.
        """
        if not getattr(self._inner, "chat_template", None):
            raise UsageError(
                "it has no chat template", hint="give the prompt as text instead of messages"
            )
        try:
            text = self._inner.apply_chat_template(
                [dict(message) for message in messages], add_generation_prompt=True, tokenize=False
            )
        except Exception as error:  # a template raises what it likes
            raise UsageError(f"its chat template does not take these messages: {error}") from error
        return self._encode(text, add_special_tokens=False)


class Tokenizers:
    """The tokenizers of a zoo's models; those of equal files are one.

    Parameters
    ----------
    zoo : Zoo
    """

    def __init__(self, zoo: Zoo) -> None:
        self._zoo = zoo
        self._made: dict[tuple[Any, ...], Tokenizer] = {}

    def of(self, model: Model, base: Model | None) -> Tokenizer | None:
        """A model's tokenizer, or its base's; None where neither has one.

        Raises
        ------
        UnservableError
            Where there are files for one, but transformers cannot make it from them.
        """
        files = tokenizer_files(self._zoo.file, model, base)
        if not files:
            return None
        key = tuple(sorted(files.items()))
        if key not in self._made:
            self._made[key] = Tokenizer(load_tokenizer(files))
        return self._made[key]
