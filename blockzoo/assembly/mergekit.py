"""mergekit's YAML, as far as it says which layers of which models follow each other.

Read by `assemble`, written by `recipe`. Only ``merge_method: passthrough`` moves layers without
computing new ones; whatever else a recipe asks for is refused by name, and no key is passed over.
The words are those of mergekit's ``MergeConfiguration``.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blockzoo.errors import UsageError

_LARGEST = 256 << 10  # bytes of a recipe
_MOST_SLICES = 10_000

#: mergekit's names of dtypes, and what they are called here
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}

_EXAMPLE = "slices: [{sources: [{model: base, layer_range: [0, 4]}]}, …]"
_REFUSED = {
    "parameters": "would scale weights, and so make new tensors",
    "residual_weight": "would mix hidden states, which no chain of blocks does",
    "modules": "is for models of several parts, which are not assembled here",
    "tokenizer": "would rearrange the embedding's rows, and so make new tensors",
    "chat_template": "would write another tokenizer; name a model with tokenizer_source",
}


@dataclass(frozen=True)
class Slice:
    """Layers `start` to `end`, which is not included, of a model; all where `end` is None."""

    model: str
    start: int = 0
    end: int | None = None


@dataclass(frozen=True)
class Merge:
    """A recipe.

    Parameters
    ----------
    slices : tuple of Slice
        In order of execution.
    base_model : str
        Whose config and files the result has; the first slice's model where empty.
    dtype : str
        What the weights must be in, by mergekit's name; empty where nothing is said.
    tokenizer_source : str
        A model's name, ``"base"`` or ``"union"``; empty where nothing is said.
    """

    slices: tuple[Slice, ...]
    base_model: str = ""
    dtype: str = ""
    tokenizer_source: str = ""

    def to_yaml(self) -> str:
        """The recipe as mergekit reads it."""
        import yaml

        data: dict[str, Any] = {}
        if len(self.slices) == 1 and self.slices[0].end is None:
            data["models"] = [{"model": self.slices[0].model}]
        else:
            data["slices"] = [
                {"sources": [{"model": s.model, "layer_range": [s.start, s.end]}]}
                for s in self.slices
            ]
        data["merge_method"] = "passthrough"
        for key in ("base_model", "dtype", "tokenizer_source"):
            if value := getattr(self, key):
                data[key] = value
        text = yaml.safe_dump(data, sort_keys=False, default_flow_style=None, allow_unicode=True)
        return str(text)


def read_merge(recipe: str | Path | Mapping[str, Any]) -> Merge:
    """A recipe from a file, or from what is in one.

    Raises
    ------
    UsageError
        Where it cannot be read, or asks for what is not done here.
    """
    if isinstance(recipe, Mapping):
        return _merge(recipe)
    path = Path(recipe)
    try:
        with open(path, "rb") as file:
            data = file.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > _LARGEST:
        raise UsageError(f"{path} is no recipe: it has more than {_LARGEST >> 10} KiB")
    return _merge(_parse(path, data))


def _parse(path: Path, data: bytes) -> Mapping[str, Any]:
    import yaml

    try:
        node = yaml.compose(data, Loader=yaml.SafeLoader)
        _check_keys(node)
        value = yaml.safe_load(data)
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split())[:300]
        raise UsageError(f"{path} is not valid YAML: {why}") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path} is no recipe: it holds no mapping", hint=f"write {_EXAMPLE}")
    return value


def _check_keys(root: Any) -> None:
    """Raise ValueError for a key that stands twice, of which YAML takes the last in silence.

    And for merge keys (``<<``), a few lines of which can ask for more than any memory holds.
    """
    import yaml

    seen: set[int] = set()
    pending = [root]
    while pending:
        node = pending.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            if "<<" in keys:
                raise ValueError("'<<' is not read here")
            if len(set(keys)) < len(keys):
                twice = next(key for key, count in Counter(keys).items() if count > 1)
                raise ValueError(f"{twice[:80]!r} is given twice")
            pending += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            pending += node.value


def _merge(data: Mapping[str, Any]) -> Merge:
    _check_words(
        data,
        "slices models merge_method base_model dtype out_dtype tokenizer_source",
        "the recipe",
    )
    method = data.get("merge_method")
    if method != "passthrough":
        raise UsageError(
            f"merge_method is {_short(method)}, and would make new tensors",
            hint="only passthrough moves layers as they are; run others with mergekit, then ingest",
        )
    if ("slices" in data) == ("models" in data):
        raise UsageError(
            "a recipe has either slices or models, and one of them", hint=f"write {_EXAMPLE}"
        )
    base = _name(data["base_model"], "base_model") if "base_model" in data else ""
    source = data.get("tokenizer_source")
    tokenizer = _name(source, "tokenizer_source") if source is not None else ""
    if "slices" in data:
        slices = tuple(_slice(entry) for entry in _entries(data["slices"], "slices"))
        if len(slices) > _MOST_SLICES:
            raise UsageError(f"the recipe has {len(slices)} slices, more than {_MOST_SLICES}")
    else:
        slices = (_whole(data["models"], base),)
    return Merge(slices, base, _dtype(data), tokenizer)


def _whole(models: Any, base: str) -> Slice:
    entries = _entries(models, "models")
    if len(entries) != 1:
        raise UsageError(
            f"passthrough takes one model, and models has {len(entries)}",
            hint="to put layers of several one after another, write slices",
        )
    _check_words(entries[0], "model", "models")
    name = _name(entries[0].get("model"), "model")
    if base and base != name:
        raise UsageError(
            f"base_model {base} would be a second model beside {name}, and passthrough takes one"
        )
    return Slice(name)


def _slice(entry: Mapping[str, Any]) -> Slice:
    _check_words(entry, "sources", "a slice")
    sources = _entries(entry.get("sources"), "sources")
    if len(sources) != 1:
        raise UsageError(
            f"passthrough takes one source for each slice, and one has {len(sources)}",
            hint="write a slice for each; to average models, run mergekit, then ingest",
        )
    _check_words(sources[0], "model layer_range", "a source")
    name, span = _name(sources[0].get("model"), "model"), sources[0].get("layer_range")
    if not isinstance(span, list) or len(span) != 2 or any(type(end) is not int for end in span):
        raise UsageError(
            f"a slice of {name} has layer_range {_short(span)}, expected two numbers",
            hint="[a, b]: layers a to b-1, counted from 0",
        )
    return Slice(name, span[0], span[1])


def _dtype(data: Mapping[str, Any]) -> str:
    given = {key: data[key] for key in ("dtype", "out_dtype") if data.get(key) is not None}
    for key, value in given.items():
        if not isinstance(value, str) or value not in DTYPES:
            raise UsageError(
                f"{key} is {_short(value)}, which is not known", hint=f"known: {', '.join(DTYPES)}"
            )
    if len(set(given.values())) > 1:
        raise UsageError(
            f"dtype {given['dtype']} and out_dtype {given['out_dtype']} would cast the weights"
        )
    return str(next(iter(given.values()), ""))


def _entries(value: Any, key: str) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not value or not all(isinstance(e, dict) for e in value):
        raise UsageError(f"{key} is not a list of entries", hint=f"write {_EXAMPLE}")
    return value


def _check_words(data: Mapping[str, Any], known: str, where: str) -> None:
    for key, value in data.items():
        if key in known.split() or value is None:
            continue
        why = _REFUSED.get(str(key))
        if why is None:
            raise UsageError(
                f"{where} has {_short(key)}, which is not known", hint=f"known: {known}"
            )
        raise UsageError(f"{where} has {key}, which {why}")


def _name(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{key} is {_short(value)}, expected a model's name in this zoo")
    for sign, meaning in (("+", "a LoRA to be merged"), ("@", "a revision")):
        if sign in value:
            raise UsageError(
                f"{key} {_short(value)} names {meaning}, which is not done here",
                hint="ingest that model under a name of its own, and write the name",
            )
    return value


def _short(value: Any) -> str:
    """A value in a message; of a list or mapping, which may be endless, only what it is."""
    if isinstance(value, (str, int, float, bool)):
        return repr(value)[:80]
    if isinstance(value, list) and all(isinstance(v, (int, float)) for v in value[:4]):
        return repr(value[:4])[:80]
    return "missing" if value is None else f"a {type(value).__name__}"
