"""Which files of a folder hold the weights that transformers or PEFT would load.

The order is theirs: one safetensors file, then a safetensors index, then the same for
torch's ``.bin`` (`transformers.modeling_utils._get_resolved_checkpoint_files`; PEFT's
``load_peft_weights``).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from blockzoo.errors import SourceError
from blockzoo.formats.folder import check_relative_name
from blockzoo.formats.jsonfile import read_object

_MAX_INDEX_BYTES = 100_000_000
_MODEL_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADAPTER_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_SHARD = re.compile(r"-\d+-of-\d+\.(safetensors|bin)$")
#: root files read as weights too when others are the ones that get loaded
_OTHER_WEIGHTS = re.compile(
    r".*\.safetensors|(pytorch_model|adapter_model).*\.bin|consolidated.*\.pth"
)


@dataclass(frozen=True)
class WeightNames:
    """The names of the files to load.

    ``index`` is the index file's name, or empty; ``promised`` maps the tensor names it lists to
    their shards.
    """

    names: tuple[str, ...]
    index: str
    promised: Mapping[str, str]


def weights_to_load(root: Path, files: Collection[str], *, adapter: bool) -> WeightNames:
    """The weight files of a folder, as transformers (PEFT, for an adapter) would pick them.

    Parameters
    ----------
    root : Path
        The folder.
    files : collection of str
        The names of the files in it.
    adapter : bool

    Raises
    ------
    SourceError
        Where there are none, or a shard is missing, or the index is broken or names files
        outside the folder.
    """
    for name in _ADAPTER_FILES if adapter else _MODEL_FILES:
        if name in files:
            return _from_index(root, name, files) if name.endswith(".json") else _just(name)
    lone = [name for name in files if name.endswith(".safetensors") and "/" not in name]
    if not adapter and len(lone) == 1 and not _SHARD.search(lone[0]):
        return _just(lone[0])
    raise _no_weights(root, files, adapter=adapter)


def other_weights(files: Collection[str], loaded: Collection[str]) -> list[str]:
    """Further root files that hold weights but are not loaded, sorted."""
    return sorted(
        name
        for name in files
        if "/" not in name and name not in loaded and _OTHER_WEIGHTS.fullmatch(name)
    )


def _just(name: str) -> WeightNames:
    return WeightNames((name,), "", {})


def _from_index(root: Path, index: str, files: Collection[str]) -> WeightNames:
    content = read_object(root / index, what="index of shards", limit=_MAX_INDEX_BYTES)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise SourceError(
            f"{root / index} has no weight_map from tensor names to shard files",
            hint="save the checkpoint again with save_pretrained, or fetch the index again",
        )
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        check_relative_name(shard, where=str(root / index))
    missing = [shard for shard in shards if shard not in files]
    if missing or not shards:
        what = f"names {_listed(missing)}, which is not there" if missing else "names no shards"
        raise SourceError(
            f"{root / index} {what}: {len(missing)} of {len(shards)} shards are missing",
            hint="fetch the missing files into the same folder, then try again",
        )
    return WeightNames(tuple(shards), index, weight_map)


def check_promises(root: Path, names: WeightNames, found: Collection[str]) -> None:
    """Raise SourceError where the index names tensors that no shard holds."""
    absent = [name for name in names.promised if name not in found]
    if absent:
        where = names.promised[absent[0]]
        raise SourceError(
            f"{root / names.index} names {_listed(absent)}, which {'are' if absent[1:] else 'is'} "
            f"in none of its shards (the first should be in {where})",
            hint="index and shards come from different saves: fetch or save them again together",
        )


def _no_weights(root: Path, files: Collection[str], *, adapter: bool) -> SourceError:
    shards = sorted(name for name in files if "/" not in name and _SHARD.search(name))
    if shards and not adapter:
        return SourceError(
            f"{root} has shards ({_listed(shards)}) but no index of what belongs together",
            hint=f"add {'model.safetensors' if shards[0].endswith('s') else 'pytorch_model.bin'}"
            ".index.json from where the shards come from",
        )
    wanted = ", ".join(_ADAPTER_FILES if adapter else _MODEL_FILES)
    kind = "an adapter" if adapter else "a model"
    return SourceError(
        f"{root} holds no weights of {kind}: none of {wanted} is there",
        hint="give the folder that holds the weights, or a .safetensors file itself",
    )


def _listed(names: list[str]) -> str:
    text = ", ".join(name[:200] for name in names[:3])
    return text + (f" and {len(names) - 3} more" if len(names) > 3 else "")
