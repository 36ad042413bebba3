"""A model's tokenizer, made by transformers from its files.

The files are written to a temporary folder first; no code from a checkpoint is run. An adapter
without a tokenizer has its base's.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blockzoo.errors import UnservableError
from blockzoo.records import Model

#: any of these makes a tokenizer
_VOCABULARIES = re.compile(
    r"tokenizer\.json|tokenizer\.model(\.v\d+)?|tekken\.json|vocab\.(json|txt)|spiece\.model"
    r"|sentencepiece\.bpe\.model|merges\.txt"
)
_OTHERS = re.compile(
    r"tokenizer_config\.json|special_tokens_map\.json|added_tokens\.json"
    r"|chat_template\.(jinja|json)|additional_chat_templates/[^/]+\.jinja"
)


def is_vocabulary(path: str) -> bool:
    """Whether a model's file is one that a tokenizer can be made from."""
    return _VOCABULARIES.fullmatch(path) is not None


def is_tokenizer_file(path: str) -> bool:
    """Whether a model's file belongs to its tokenizer."""
    return is_vocabulary(path) or _OTHERS.fullmatch(path) is not None


def tokenizer_files(
    read: Callable[[Model, str], bytes | None], model: Model, base: Model | None
) -> dict[str, bytes]:
    """What a model's tokenizer, or its base's, is made from; empty where neither has one.

    Parameters
    ----------
    read : callable
        A model's file by its path, such as ``Zoo.file``.
    model : Model
    base : Model or None
        An adapter's.
    """
    for owner in (model, base):
        if owner is None or not any(is_vocabulary(f.path) for f in owner.files):
            continue
        paths = [f.path for f in owner.files]
        wanted = [path for path in paths if is_tokenizer_file(path)]
        found = {path: read(owner, path) for path in wanted}
        found["config.json"] = read(base or model, "config.json")
        return {path: bytes(content) for path, content in found.items() if content is not None}
    return {}


def load_tokenizer(files: Mapping[str, bytes]) -> Any:
    """Transformers' tokenizer of some files.

    Raises
    ------
    UnservableError
        Where transformers cannot make one.
    """
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
