"""What the names of a zoo reach: the roots that a collection keeps and a check wants whole."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from blockzoo.errors import DamagedError
from blockzoo.records import Block, Model
from blockzoo.store.objects import Objects
from blockzoo.store.refs import LATEST, Refs


@dataclass
class Reach:
    """Everything reachable, and from where.

    Parameters
    ----------
    names : dict of (folder, digest) to set of str
        For each reachable object, the ``name:tag`` of every model that needs it.
    models, blocks : dict
        The records, by digest.
    references : dict of str to str
        For each tensor that is kept as a difference, the tensor that it is one from.
    unread : dict of (folder, digest) to DamagedError
        Records that could not be read; what lies behind them is unknown.
    """

    names: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    models: dict[str, Model] = field(default_factory=dict)
    blocks: dict[str, Block] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    unread: dict[tuple[str, str], DamagedError] = field(default_factory=dict)

    @property
    def tensors(self) -> dict[str, int]:
        """Bytes of each reachable tensor, by digest."""
        sizes = {r.digest: r.nbytes for b in self.blocks.values() for r in b.tensors.values()}
        for model in self.models.values():
            for part in (p for recipe in model.files for p in recipe.parts):
                if part.source == "tensor":
                    sizes[part.digest] = part.size
        return sizes


def roots(refs: Refs) -> dict[str, set[str]]:
    """The models that have a name now: digest to ``name:tag``."""
    found: dict[str, set[str]] = {}
    for ref in refs.all():
        for tag, target in ref.tags.items():
            found.setdefault(target.digest, set()).add(f"{ref.name}:{tag}")
    return found


def first_names(refs: Refs) -> dict[str, str]:
    """The first name of each model that has one, by digest; ``:latest`` is left out."""
    return {d: min(names).removesuffix(f":{LATEST}") for d, names in roots(refs).items()}


def reach(objects: Objects, starts: Mapping[str, Iterable[str]]) -> Reach:
    """Follow models to their blocks, tensors, files and bases, and to what is certified of them.

    An equivalence record is reached from its receiving model and from the version that it
    certifies, and goes when they go. It keeps the adapter blocks that were made for it; it does
    not keep other models' blocks.

    Parameters
    ----------
    objects : Objects
    starts : dict of str to iterable of str
        Model digests, and the names to record for each.
    """
    result = Reach()
    for digest, names in starts.items():
        _visit(objects, result, digest, set(names))
    for record in objects.all("equivalences"):
        key = ("equivalences", record.digest)
        try:
            found = objects.equivalence(record.digest)
        except DamagedError:
            if objects.find(*key):  # else it was collected since it was listed
                result.names[key] = set()  # whatever it was of: in doubt it stays
            continue
        of = ("models", found["model"])
        if of not in result.names and key not in result.names:
            continue
        needed = result.names.get(of, set()) | result.names.get(key, set())
        result.names[key] = needed
        for block in {b for swap in found["swaps"] for b in swap.get("adapters", ())}:
            _visit_block(objects, result, block, needed)
    for (folder, digest), needed in list(result.names.items()):
        if folder == "tensors":
            _visit_references(objects, result, digest, needed)
    return result


def _visit_references(objects: Objects, result: Reach, digest: str, names: set[str]) -> None:
    try:
        for reference in objects.lineage(digest):
            result.names.setdefault(("tensors", reference), set()).update(names)
            result.references[digest] = reference
            digest = reference
    except DamagedError as error:
        result.unread["tensors", digest] = error


def _visit(objects: Objects, result: Reach, digest: str, names: set[str]) -> None:
    def mark(folder: str, digest: str) -> None:
        result.names.setdefault((folder, digest), set()).update(names)

    mark("models", digest)
    try:
        model = result.models[digest] = result.models.get(digest) or objects.model(digest)
    except DamagedError as error:
        result.unread["models", digest] = error
        return
    for part in (part for recipe in model.files for part in recipe.parts):
        if part.digest:
            mark("tensors" if part.source == "tensor" else "files", part.digest)
    for block in (b for hop in model.chain for b in (hop.block, *hop.adapters) if b):
        _visit_block(objects, result, block, names)
    if model.evidence:
        mark("equivalences", model.evidence)
    if model.base:
        _visit(objects, result, model.base, names)


def _visit_block(objects: Objects, result: Reach, digest: str, names: set[str]) -> None:
    result.names.setdefault(("blocks", digest), set()).update(names)
    try:
        block = result.blocks[digest] = result.blocks.get(digest) or objects.block(digest)
    except DamagedError as error:
        result.unread["blocks", digest] = error
        return
    for ref in block.tensors.values():
        result.names.setdefault(("tensors", ref.digest), set()).update(names)
