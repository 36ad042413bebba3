"""The front door: a zoo of model blocks in a folder.

Everything a user does to a zoo is a method here and a verb of the command line; the work is done
in `ingest`, `export`, `repair` and the packages below.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blockzoo.errors import (
    BlockzooError,
    NotFoundError,
    SourceError,
    UnservableError,
    UsageError,
)
from blockzoo.progress import Progress, silent
from blockzoo.records import Block, Model
from blockzoo.store.collect import YOUNG, GcPlan
from blockzoo.store.layout import open_zoo
from blockzoo.store.objects import Objects
from blockzoo.store.refs import Refs, split_name, tagged
from blockzoo.store.session import Session
from blockzoo.tensors import TensorInfo

if TYPE_CHECKING:
    from blockzoo.arrival import Ingested
    from blockzoo.assembly.stitched import Stitched
    from blockzoo.compact.plan import CompactPlan
    from blockzoo.dedupe.plan import Level, Plan
    from blockzoo.equivalence.chains import CertifiedChain
    from blockzoo.equivalence.record import Equivalence
    from blockzoo.equivalence.stitch_fit import Settings
    from blockzoo.execution.chain import RunnableChain
    from blockzoo.execution.tensors import TensorSource
    from blockzoo.explore.explorer import Explorer
    from blockzoo.explore.families import FamilyTree
    from blockzoo.explore.similarity import Similarity
    from blockzoo.explore.stats import Stats
    from blockzoo.explore.table import Table
    from blockzoo.explore.view import ModelView
    from blockzoo.ingest import Base
    from blockzoo.store.check import Report
    from blockzoo.team import Team

_SHORTEST_DIGEST = 8  # hex digits


class Zoo:
    """A content-addressed zoo of model blocks.

    Parameters
    ----------
    path : str or Path
        Its folder.
    create : bool
        Make it where there is none.

    Raises
    ------
    NoZooError, ZooVersionError, DamagedError

    Examples
    --------
    >>> zoo = Zoo("zoo")
    >>> zoo.ingest("models/base", name="base")
    >>> zoo.export("base", "out/")
    """

    def __init__(self, path: str | Path, *, create: bool = True) -> None:
        self.path = Path(path)
        layout, self.id = open_zoo(self.path, create=create)
        self.objects = Objects(layout)
        self.refs = Refs(layout.refs, layout.tmp)

    # in and out

    def ingest(
        self,
        source: str | Path,
        name: str | None = None,
        *,
        base: str | None = None,
        detached: bool = False,
        dedupe: Level | None = None,
        progress: Progress = silent,
    ) -> Ingested:
        """Take a checkpoint in; only tensors that the zoo does not have are written.

        Parameters
        ----------
        source : str or Path
            A Hugging Face folder (safetensors or torch ``.bin``, one file or shards), a PEFT
            adapter's folder, one file of weights, or a Hub id.
        name : str, optional
            ``name`` or ``name:tag``; the folder's name, or the Hub id, by default.
        base : str, optional
            For an adapter, its base's name in this zoo; by default what its config says.
        detached : bool
            Keep an adapter even though its base is absent.
        dedupe : {"fast", "small"}, optional
            Keep what is near other tensors as differences from them, see `dedupe`.
        progress : Progress

        Raises
        ------
        SourceError
            Where the checkpoint is damaged, unsafe, incomplete or made for another base.
        UsageError
            For an unusable name, or a checkpoint's folder that the zoo itself lies in.
        LockedError
            Where somebody is ingesting under the same name.
        """
        (done,) = self.ingest_all(
            [source], name, base=base, detached=detached, dedupe=dedupe, progress=progress
        )
        return done

    def ingest_all(
        self,
        sources: Iterable[str | Path],
        name: str | None = None,
        *,
        base: str | None = None,
        detached: bool = False,
        dedupe: Level | None = None,
        failed: Callable[[str, Exception], None] | None = None,
        progress: Progress = silent,
    ) -> list[Ingested]:
        """Take several checkpoints in together; give adapters after what they are adapters of.

        Near-copies among them are found whatever their order. Parameters are those of `ingest`,
        and ``failed``, which is told of each source that cannot be taken in; without it the
        first such error is raised, and no name has been set for any of them.
        """
        from blockzoo.arrival import Arrivals

        def fail(source: str, error: Exception) -> None:
            raise error

        found = []
        for source in sources:
            try:
                path = _locate(source)
                check_apart(self.path, path)
                found.append((str(source), path, name))
            except (BlockzooError, OSError) as error:
                (failed or fail)(str(source), error)
        arrivals = Arrivals(
            self,
            base=base,
            detached=detached,
            level=dedupe,
            progress=progress,
            failed=failed or fail,
        )
        return arrivals.run(found)

    def export(
        self,
        name: str,
        folder: str | Path,
        *,
        overwrite: bool = False,
        team: Team | None = None,
        progress: Progress = silent,
    ) -> list[Path]:
        """Write a model's original files, byte for byte, into a folder; see `export.export`."""
        from blockzoo.export import export

        model = self.model(name)
        return export(
            self.objects,
            model,
            Path(folder),
            overwrite=overwrite,
            what=name,
            team=team,
            progress=progress,
        )

    def assemble(self, recipe: str | Path | Mapping[str, Any], name: str) -> Ingested:
        """Make a model of other models' layers; no tensor is written.

        Parameters
        ----------
        recipe : str or Path or mapping
            A file of mergekit's YAML, or what is in one: ``slices``, each with a model's name in
            this zoo and a half-open ``layer_range``; ``merge_method: passthrough``.
        name : str
            ``name`` or ``name:tag``.

        Raises
        ------
        UsageError
            Where the recipe asks for what is not done, such as other merge methods.
        NotFoundError
            Where a model is not in the zoo.
        BlockzooError
            Where layers do not go with each other, or depend on where they stand.
        """
        from blockzoo.assembly.assemble import assemble

        return assemble(self, recipe, name)

    def stitch(
        self,
        source: str,
        target: str,
        name: str,
        *,
        calibration: str | Path | Sequence[str | Path] = (),
        text: str | Path | Sequence[str | Path] = (),
        also: Sequence[tuple[int, int]] = (),
        using: str | None = None,
        settings: Settings | None = None,
        controls: bool = True,
        tokens: int = 20_000,
        progress: Progress = silent,
    ) -> Stitched:
        """Make a model of one's first layers, a stitch, and another's last layers.

        ``zoo.stitch("small@3", "base@4", "mixed", calibration="some.txt", text="other.txt")``;
        the models may be of different width. See `assembly.stitching.stitch`. The result shows
        perplexities beside both models' and three controls', and what it costs as a stand-in.
        """
        from blockzoo.assembly.stitching import stitch

        return stitch(
            self, source, target, name, calibration=calibration, text=text, also=also,
            using=using, settings=settings, controls=controls, tokens=tokens, progress=progress,
        )  # fmt: skip

    def recipe(self, name: str) -> str:
        """The YAML, as mergekit reads it, that makes a model's chain of other named models' layers.

        Raises
        ------
        BlockzooError
            Where one of its blocks is in no other named model.
        """
        from blockzoo.assembly.recipe import find_merge

        return find_merge(self, name).to_yaml()

    # reading

    def names(self) -> list[str]:
        """Every name with a model, sorted; tags are in `models`."""
        return [ref.name for ref in self.refs.all()]

    def resolve(self, name: str) -> str:
        """A model's digest, from ``name``, ``name:tag``, or its digest's first 8 or more digits.

        Raises
        ------
        NotFoundError, UsageError
        """
        try:
            return self.refs.find(name).digest
        except NotFoundError:
            digits = set(name) <= set("0123456789abcdef") and _SHORTEST_DIGEST <= len(name) <= 64
            found = [o.digest for o in self.objects.all("models") if o.digest.startswith(name)]
            if not digits or not found:
                raise
            if len(found) > 1:
                raise UsageError(f"{name} begins {len(found)} digests", hint="give more") from None
            return found[0]

    def model(self, name: str) -> Model:
        """A model's record."""
        return self.objects.model(self.resolve(name))

    def block(self, digest: str) -> Block:
        """A block's record, by its whole digest."""
        return self.objects.block(digest)

    def blocks_of(self, model: Model) -> dict[str, Block]:
        """The blocks on a model's chain by digest, adapter blocks included."""
        digests = {d for hop in model.chain for d in (hop.block, *hop.adapters) if d}
        return {digest: self.objects.block(digest) for digest in sorted(digests)}

    def tensor(self, digest: str) -> tuple[TensorInfo, memoryview]:
        """A tensor's dtype and shape, and its bytes as a view of the mapped file."""
        return self.objects.tensor(digest)

    def file(self, model: Model, path: str) -> bytes | None:
        """One of a model's original files; None where it has none of that name."""
        from blockzoo.export import content

        for recipe in model.files:
            if recipe.path == path:
                return b"".join(content(self.objects, part) for part in recipe.parts)
        return None

    def config(self, model: Model) -> dict[str, Any]:
        """A model's ``config.json``, an adapter's ``adapter_config.json``; empty where absent."""
        adapter = model.kind == "adapter"
        data = self.file(model, "adapter_config.json" if adapter else "config.json")
        return dict(json.loads(data)) if data else {}

    def why_not_served(self, model: Model) -> str | None:
        """What keeps the runtime from running a model exactly; None where nothing does."""
        from blockzoo.partition import why_not_served

        base = self.objects.model(model.base) if model.base else model
        return why_not_served(model, self.blocks_of(model), self.config(base))

    def chain(self, model: Model, source: TensorSource | None = None) -> RunnableChain:
        """A model as something that runs, one block in memory at a time.

        Parameters
        ----------
        model : Model
            Its blocks must be in the zoo; it need not be itself.
        source : TensorSource, optional
            Where its tensors come from; from the zoo, in float32, by default.

        Raises
        ------
        UnservableError
            Where it cannot be run exactly.
        """
        from blockzoo.execution.chain import RunnableChain
        from blockzoo.execution.tensors import StreamedTensors

        base = self.objects.model(model.base) if model.base else model
        source = source or StreamedTensors(self.tensor)
        return RunnableChain(model, self.blocks_of(model), self.config(base), source)

    def tokenizer(self, model: Model) -> Any:
        """Transformers' tokenizer of a model, or of its base.

        Raises
        ------
        UnservableError
            Where there is none.
        """
        from blockzoo.execution.tokenizer import load_tokenizer, tokenizer_files

        base = self.objects.model(model.base) if model.base else None
        files = tokenizer_files(self.file, model, base)
        if not files:
            raise UnservableError(
                "the model has no tokenizer, so it cannot be given text",
                hint="ingest its folder with the tokenizer's files in it",
            )
        return load_tokenizer(files)

    def find_base(self, wants: str, coming: Mapping[str, Base] | None = None) -> Base | None:
        """The base that an adapter asks for: by name, or by the last part of a path.

        Models that are `coming` in with it, by name, go before those that have their names.
        """
        from blockzoo.ingest import Base, base_names

        for name in base_names(wants):
            if coming and name in coming:
                return coming[name]
            try:
                digest = self.resolve(name)
            except (NotFoundError, UsageError):
                continue
            model = self.objects.model(digest)
            if model.kind != "model":
                raise SourceError(
                    f"{name!r}, named as the base, is an adapter itself",
                    hint="name a full model with --base",
                )
            return Base(digest, model, self.blocks_of(model))
        return None

    # showing

    def models(self) -> Table:
        """Every named model: kind, size, what it added."""
        from blockzoo.explore import listing

        return listing.models(self)

    def blocks(self) -> Table:
        """Every distinct block that a name reaches, and how many models use it."""
        from blockzoo.explore import listing

        return listing.blocks(self)

    def __getitem__(self, name: str) -> ModelView:
        """A model's chain as it is shown: hops, digests, sizes, and who shares each."""
        from blockzoo.explore import listing

        return listing.view(self, name)

    def stats(self) -> Stats:
        """Logical and stored bytes, and the saving."""
        from blockzoo.explore import listing

        return listing.stats(self)

    def history(self, name: str) -> Table:
        """What a name pointed to, oldest first."""
        from blockzoo.explore import listing

        return listing.history(self, name)

    def diff(self, first: str, second: str, *, rank: bool = False) -> Table:
        """Two models tensor by tensor, with the ranks of the differences; see `explore.diff`."""
        from blockzoo.explore.diff import diff

        models = [(name, self.model(name)) for name in (first, second)]
        left, right = [(name, model, self.blocks_of(model)) for name, model in models]
        return diff(self.objects, left, right, rank=rank)

    def similar(self, what: str, *, top_k: int = 10, progress: Progress = silent) -> Table:
        """What is nearest to a model or a block; see `explore.similar`."""
        from blockzoo.explore.similar import similar

        return similar(self, what, top_k, progress)

    def similarity(
        self,
        first: str,
        second: str,
        text: str | Path | None = None,
        *,
        progress: Progress = silent,
    ) -> Similarity:
        """Two models block by block: by weights, and on a text by what the blocks do to it.

        See `explore.compare`. It shows itself as a table; ``.clusters()``, ``.heatmap()``.
        """
        from blockzoo.explore.compare import similarity

        return similarity(self, first, second, text, progress=progress)

    def families(self, progress: Progress = silent) -> FamilyTree:
        """Which models descend from which, told from their weights; ``.dendrogram()`` draws it."""
        from blockzoo.explore.similar import family_tree

        return family_tree(self, progress)

    # smaller

    def dedupe(
        self,
        *,
        level: Level = "small",
        keep_raw: Iterable[str] = (),
        only: Iterable[str] | None = None,
        sample: bool = True,
        progress: Progress = silent,
    ) -> Plan:
        """Plan to keep near-copies as differences, without loss; see `dedupe.planner`.

        The plan shows itself; ``plan.execute()`` does it, `undo_dedupe` takes it back.
        """
        from blockzoo.dedupe.planner import make_plan

        return make_plan(
            self, level=level, keep_raw=keep_raw, only=only, sample=sample, progress=progress
        )

    def undo_dedupe(self) -> Plan:
        """Plan to keep every tensor raw again."""
        from blockzoo.dedupe.planner import undo_plan

        return undo_plan(self)

    def compact(
        self,
        name: str,
        calibration: str | Path | Sequence[str | Path],
        text: str | Path | Sequence[str | Path],
        *,
        own: str | Path | None = None,
        base: str | None = None,
        grade: str = "B",
        widths: Sequence[int] = (1, 2, 4),
        tokens: int = 20_000,
        progress: Progress = silent,
    ) -> CompactPlan:
        """Plan to keep a full fine-tune as its base and compact, certified differences.

        ``zoo.compact("acme/sql", "sql.calibration.txt", ["wiki.txt"], own="sql.txt")``; see
        `compact.planner`. The plan shows itself; ``plan.execute()`` gives the name a new version,
        and `revert` takes that back.
        """
        from blockzoo.compact.planner import plan_compact

        return plan_compact(
            self, name, calibration, text, own=own, base=base, grade=grade, widths=widths,
            tokens=tokens, progress=progress,
        )  # fmt: skip

    def equivalent(
        self,
        name: str,
        calibration: str | Path | Sequence[str | Path],
        text: str | Path | Sequence[str | Path],
        *,
        own: str | Path | None = None,
        grade: str = "B",
        tokens: int = 20_000,
        progress: Progress = silent,
    ) -> CompactPlan:
        """Plan to let other models' blocks stand in for a model's; see `compact.equivalent`.

        What is planned, executed and taken back as with `compact`, which keeps what differs.
        """
        from blockzoo.compact.equivalent import plan_equivalent

        return plan_equivalent(
            self, name, calibration, text, own=own, grade=grade, tokens=tokens, progress=progress
        )

    def revert(self, name: str) -> str:
        """Let a compact version's name point to the exact one again; returns its digest.

        Raises
        ------
        NotFoundError
            Where the name is no compact version, or the exact one has been collected.
        """
        from blockzoo.compact.version import revert

        return revert(self, name)

    # equivalence

    def certify(
        self,
        name: str,
        swap: str | Iterable[str],
        text: str | Path | Sequence[str | Path],
        *,
        own: str | Path | None = None,
        calibration: str | Path | Sequence[str | Path] = (),
        tokens: int = 20_000,
        progress: Progress = silent,
    ) -> Equivalence:
        """Certify that other blocks may stand in for some of a model's, all of them together.

        ``zoo.certify("acme/sql", "layers.3.mlp=base", ["sql.txt", "wiki.txt"])``; see
        `equivalence.certify`, which also takes many candidates at once.
        """
        from blockzoo.equivalence.certify import certify

        (record,) = certify(
            self, name, [swap], text, own=own, calibration=calibration, tokens=tokens,
            progress=progress,
        )  # fmt: skip
        return record

    def equivalence(self, digest: str) -> Equivalence:
        """A certification's record, by its digest's first 8 or more digits."""
        from blockzoo.equivalence.listing import find

        record = find(self, digest)
        if record is None:
            raise NotFoundError(f"there is no equivalence record {digest!r}")
        return record

    def equivalences(self, name: str | None = None) -> Table:
        """What has been certified, of one model or of all."""
        from blockzoo.equivalence.listing import equivalences

        return equivalences(self, name)

    def chains(
        self, name: str, at_most: str = "B", *, any_text: bool = False
    ) -> list[CertifiedChain]:
        """The chains that are proven to stand in for a model; see `equivalence.chains.chains`."""
        from blockzoo.equivalence.chains import chains

        return chains(self, name, at_most, any_text=any_text)

    @property
    def explore(self) -> Explorer:
        """Pictures and rankings of the whole zoo: ``zoo.explore.dendrogram()``."""
        from blockzoo.explore.explorer import Explorer

        return Explorer(self)

    # names

    def tag(self, name: str, new_name: str) -> None:
        """Let `new_name` point to what `name` (a name or a digest) points to."""
        model = self.model(name)
        short, tag = split_name(new_name)
        with Session(self.objects) as session:
            self.rely_on(session, model)
            if not session.commit():
                raise NotFoundError(f"{name!r} has just been collected")
            self.refs.set(short, tag, tagged(model), "tag", name)

    def remove(self, name: str) -> None:
        """Forget a name or one tag of it; objects stay until `gc`, history for good."""
        self.refs.remove(*split_name(name))

    # care

    def gc(self, *, older_than: float = YOUNG) -> GcPlan:
        """Plan to delete what no name reaches and nobody touched for `older_than` seconds."""
        from blockzoo.store.collect import plan

        return plan(self.objects, self.refs, older_than=older_than)

    def verify(self, progress: Progress = silent) -> Report:
        """Check every object against its digest and every name against what it needs."""
        from blockzoo.store.check import verify

        return verify(self.objects, self.refs, partial(progress, "verify", new=0))

    def repair(self, source: str | Path, progress: Progress = silent) -> Report:
        """Restore damaged and missing objects from another zoo or an original folder."""
        from blockzoo.repair import repair

        return repair(self, Path(source), progress)

    def __repr__(self) -> str:
        return f"Zoo({str(self.path)!r})\n{self.models().to_text()}"

    def _repr_html_(self) -> str:
        return self.models()._repr_html_()

    def rely_on(self, session: Session, model: Model) -> None:
        """Touch everything a model needs, so that no collection takes it."""
        from blockzoo.store.reach import reach

        for key in reach(self.objects, {model.digest: ()}).names:
            session.rely(*key)


def check_apart(zoo: Path, source: Path) -> None:
    """Raise UsageError where a zoo lies, or would, in the folder that is to be taken in."""
    if source.is_dir() and zoo.resolve().is_relative_to(source.resolve()):
        raise UsageError(
            f"the zoo {zoo} lies in {source}, and would be taken in as a part of the checkpoint",
            hint="keep it elsewhere, with --zoo PATH or BLOCKZOO_ZOO",
        )


def _locate(source: str | Path) -> Path:
    """A local path as it is; a Hub id is downloaded."""
    path = Path(source)
    if isinstance(source, Path) or path.exists() or not _is_hub_id(source):
        return path
    from blockzoo.formats.hub import fetch

    return fetch(source)


def _is_hub_id(source: str) -> bool:
    parts = source.split("/")
    return len(parts) == 2 and all(parts) and not source.startswith((".", "~"))
