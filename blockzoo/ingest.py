"""Taking a checkpoint in: every tensor kept once, every file as a recipe, the chain on top.

Called by `arrival` and, to derive damaged objects again, by `repair`.
Several threads hash and write; what is in memory at a time is a few chunks of each.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from blockzoo.errors import BaseMissingError, SourceError, UsageError
from blockzoo.formats.checkpoint import Checkpoint, open_checkpoint
from blockzoo.formats.mapped import MappedFile
from blockzoo.formats.stored import Span, StoredTensor, WeightsFile
from blockzoo.partition import partition, partition_adapter
from blockzoo.progress import Progress
from blockzoo.records import Block, Model, Part, Recipe
from blockzoo.store.refs import split_name
from blockzoo.store.session import Session
from blockzoo.tensors import TensorInfo, TensorRef

if TYPE_CHECKING:
    from blockzoo.dedupe.incoming import Incoming

_In = TypeVar("_In")
_Out = TypeVar("_Out")

_THREADS = min(4, (os.cpu_count() or 1) + 1)  # one more than cores: some wait for the disk


@dataclass(frozen=True)
class Base:
    """An adapter's base as the zoo has it; ``blocks`` are its chain's, by digest."""

    digest: str
    model: Model
    blocks: Mapping[str, Block]


class Intake:
    """One checkpoint on its way in.

    Parameters
    ----------
    session : Session
    source : Path
        A folder, or a lone file of weights.
    find_base : callable
        ``name -> Base or None``: what an adapter's base is in this zoo.
    base : str, optional
        The base's name as the user gave it; else the adapter's config says.
    detached : bool
        Keep an adapter whose base is absent, to be attached later.
    progress : Progress
    what : str
        The name that progress is told under.
    incoming : Incoming, optional
        Takes the tensors, to be stored after `run`; else they are written raw at once.
    """

    def __init__(
        self,
        session: Session,
        source: Path,
        find_base: Callable[[str], Base | None],
        *,
        base: str | None,
        detached: bool,
        progress: Progress,
        what: str,
        incoming: Incoming | None = None,
    ) -> None:
        self.session = session
        self.source = source
        self.find_base = find_base
        self.base = base
        self.detached = detached
        self.new_bytes = 0
        self.notes: list[str] = []
        self.blocks: Mapping[str, Block] = {}  # of a model's chain, after `run`
        self._incoming = incoming
        self._done = 0
        self._total = 0
        self._progress = progress
        self._what = what
        self._guard = threading.Lock()

    def run(self, files: ExitStack | None = None) -> Model:
        """Write all objects of the checkpoint and return the model's record, written too.

        Parameters
        ----------
        files : ExitStack, optional
            Keeps the checkpoint open until it is closed itself, for `Incoming.store`.

        Raises
        ------
        SourceError
            Where the checkpoint cannot be taken in; nothing then refers to what was written.
        """
        with ExitStack() as own:
            checkpoint = (files or own).enter_context(open_checkpoint(self.source))
            weights = [*checkpoint.weights, *checkpoint.other_weights]
            root = checkpoint.path
            self.notes += checkpoint.notes
            self._total = sum(f.size for f in weights)
            self._total += sum((root / f).stat().st_size for f in checkpoint.files)
            kept: dict[str, TensorRef] = {}
            recipes = [
                self._weights(file, root, kept, file in checkpoint.weights) for file in weights
            ]
            recipes += self._parallel(lambda path: self._file(root, path), checkpoint.files)
            checkpoint.check()
            model = self._model(checkpoint, kept, tuple(sorted(recipes, key=lambda r: r.path)))
        self.session.model(model)
        return model

    def _weights(
        self, file: WeightsFile, root: Path, kept: dict[str, TensorRef], in_chain: bool
    ) -> Recipe:
        """Keep one file of weights; its tensors' refs are added to `kept` if it is the chain's."""
        digests: dict[tuple[int, int], str] = {}

        def keep(index: int) -> Part:
            span = file.spans[index]
            if span.info is None:
                self._advance(span.size, 0)
                return self._literal(file.bytes(span))
            digest, new = self._tensor(span.info, file.bytes(span), file.path, span)
            digests[span.start, span.end] = digest
            self._advance(span.size, new)
            return Part("tensor", span.size, digest)

        def refer(tensor: StoredTensor) -> TensorRef:
            if tensor.span and tensor.span.info == tensor.info:
                digest = digests[tensor.span.start, tensor.span.end]
            else:
                digest, new = self._tensor(tensor.info, tensor.data)
                self._advance(0, new)
            return TensorRef(tensor.info.dtype, tensor.info.shape, digest)

        parts = tuple(self._parallel(keep, range(len(file.spans))))
        if in_chain:
            kept.update((tensor.name, refer(tensor)) for tensor in file.tensors)
        return self._recipe(root, file.path.relative_to(root), parts)

    def _tensor(
        self,
        info: TensorInfo,
        data: memoryview,
        path: Path | None = None,
        span: Span | None = None,
    ) -> tuple[str, int]:
        if self._incoming is None:
            return self.session.tensor(info, data)
        from blockzoo.dedupe.coding import Place

        place = Place(path.resolve(), span.start, span.end) if path and span else None
        return self._incoming.take(info, data, place)

    def _file(self, root: Path, path: Path) -> Recipe:
        file = MappedFile(root / path)
        try:
            part = self._literal(file.bytes(0, file.size)) if file.size else None
            file.check()  # its bytes were read twice: for the digest, and to be written
        finally:
            file.close()
        self._advance(file.size, 0)
        return self._recipe(root, path, (part,) if part else ())

    def _literal(self, data: memoryview) -> Part:
        return self.session.literal(data)

    def _recipe(self, root: Path, path: Path, parts: tuple[Part, ...]) -> Recipe:
        executable = os.access(root / path, os.X_OK)
        return Recipe(path.as_posix(), parts, executable)

    def _model(
        self, checkpoint: Checkpoint, kept: Mapping[str, TensorRef], recipes: tuple[Recipe, ...]
    ) -> Model:
        if checkpoint.kind == "model":
            parts = partition(checkpoint.config, kept)
            self.blocks = parts.blocks
            for block in parts.blocks.values():
                self.session.block(block)
            return Model("model", parts.family, parts.hops, recipes, parts.ties)
        wants = self.base or str(checkpoint.config.get("base_model_name_or_path") or "")
        return adapter(self.session, checkpoint.config, kept, self._base(wants), recipes, wants)

    def _base(self, wants: str) -> Base | None:
        found = self.find_base(wants) if wants else None
        if found is None and not self.detached:
            named = f"its base {wants!r}" if wants else "its base, which it does not name,"
            raise BaseMissingError(
                f"{self.source} is an adapter and {named} is not in the zoo",
                hint="ingest the base first, name it with --base NAME, or keep the adapter "
                "until its base arrives with --detached",
            )
        return found

    def _parallel(self, function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
        with ThreadPoolExecutor(_THREADS) as pool:
            try:
                yield from pool.map(function, items)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _advance(self, size: int, new: int) -> None:
        with self._guard:
            self._done += size
            self.new_bytes += new
            self._progress(self._what, self._done, self._total, self.new_bytes)


def adapter(
    session: Session,
    config: Mapping[str, Any],
    tensors: Mapping[str, TensorRef],
    base: Base | None,
    recipes: tuple[Recipe, ...],
    wants: str,
) -> Model:
    """An adapter on the chain of its base, or detached where that is None; its blocks written."""
    chain, blocks = (base.model.chain, base.blocks) if base else (None, None)
    parts = partition_adapter(config, tensors, chain, blocks)
    for block in parts.blocks.values():
        session.block(block)
    ties = {**base.model.ties, **parts.ties} if base else parts.ties
    digest = base.digest if base else ""
    return Model("adapter", parts.family, parts.hops, recipes, ties, digest, wants)


def attach(
    session: Session,
    model: Model,
    blocks: Mapping[str, Block],
    config: Mapping[str, Any],
    base: Base,
) -> Model:
    """A detached adapter on the chain of a base that has arrived; written.

    Raises
    ------
    SourceError
        Where it was made for another base.
    """
    tensors = {
        hop.prefix + name: ref
        for hop in model.chain
        for digest in hop.adapters
        for name, ref in blocks[digest].tensors.items()
    }
    attached = adapter(session, config, tensors, base, model.files, model.wants)
    for key, digest in objects_of(model):
        session.rely(key, digest)
    session.model(attached)
    return attached


def objects_of(model: Model) -> Iterator[tuple[str, str]]:
    """The (folder, digest) of every tensor and file of a model's recipes."""
    for part in (part for recipe in model.files for part in recipe.parts):
        if part.digest:
            yield ("tensors" if part.source == "tensor" else "files"), part.digest


def base_names(wants: str) -> tuple[str, str]:
    """What the base that an adapter asks for may be called: so, or as the last part of a path."""
    return wants, wants.rstrip("/").rpartition("/")[2]


def default_name(source: Path) -> str:
    """A model's name after its folder or file.

    Raises
    ------
    SourceError
        Where nothing there can serve as a name.
    """
    source = source.resolve()
    name = source.name if source.is_dir() else source.stem
    try:
        return split_name(name)[0]
    except UsageError as error:
        raise SourceError(
            f"{name!r} cannot be a model's name", hint="give one with --name"
        ) from error
