"""A model's tokenizer, built from its files in the zoo.

The files are written to a temporary folder and read by transformers; no code from a checkpoint
is run. An adapter without a tokenizer has its base's.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blockzoo.errors import UnservableError, UsageError
from blockzoo.records import Model
from blockzoo.zoo import Zoo

#: any of these makes a tokenizer
_VOCABULARIES = re.compile(
    r"tokenizer\.json|tokenizer\.model(\.v\d+)?|tekken\.json|vocab\.(json|txt)|spiece\.model"
    r"|sentencepiece\.bpe\.model|merges\.txt"
)
_OTHERS = re.compile(
    r"tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja"
)


class Tokenizer:
    """Text to token ids and back.

    Parameters
    ----------
    inner : transformers' tokenizer
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def encode(self, text: str) -> list[int]:
        """With the special tokens that the tokenizer adds by itself."""
        return list(self._inner(text)["input_ids"])

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
        return list(self._inner(text, add_special_tokens=False)["input_ids"])


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
        for owner in (model, base):
            if owner is not None and any(
                _VOCABULARIES.fullmatch(recipe.path) for recipe in owner.files
            ):
                return self._of(owner, base or model)
        return None

    def _of(self, owner: Model, configured: Model) -> Tokenizer:
        recipes = [
            recipe
            for recipe in owner.files
            if _VOCABULARIES.fullmatch(recipe.path) or _OTHERS.fullmatch(recipe.path)
        ]
        files: dict[str, bytes] = {}
        for recipe in recipes:
            content = self._zoo.file(owner, recipe.path)
            if content is not None:
                files[recipe.path] = bytes(content)
        if (config := self._zoo.file(configured, "config.json")) is not None:
            files["config.json"] = bytes(config)
        key = tuple(sorted(files.items()))
        if key not in self._made:
            self._made[key] = Tokenizer(_load(files))
        return self._made[key]


def _load(files: Mapping[str, bytes]) -> Any:
    import transformers

    with tempfile.TemporaryDirectory(prefix="blockzoo-tokenizer-") as folder:
        for path, content in files.items():
            target = Path(folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        try:
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
        except Exception as error:  # transformers raises what its tokenizers happen to raise
            if list(files) == ["tokenizer.json"]:  # with nothing that says which class it is of
                return transformers.PreTrainedTokenizerFast(
                    tokenizer_file=str(Path(folder, "tokenizer.json"))
                )
            raise UnservableError(
                f"transformers cannot make its tokenizer from {', '.join(sorted(files))}: {error}"
            ) from error
