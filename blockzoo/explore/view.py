"""How one model and one block show themselves: the chain, hop by hop, and who else has each part.

`Zoo.__getitem__` and ``blockzoo show`` hand over plain records; the views read no files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from blockzoo.errors import NotFoundError
from blockzoo.explore import html
from blockzoo.explore.loading import Loading
from blockzoo.explore.table import Column, Table
from blockzoo.explore.values import SHORT_DIGEST, format_bytes, format_percent, format_shape
from blockzoo.records import Block, Hop, Model
from blockzoo.tensors import TensorRef, canonical_json

#: names of the other models that have an object, by the digest of a block or tensor
Sharers = Mapping[str, Sequence[str]]

_NAMES_SHOWN = 4

_CHAIN = (
    Column("hop"),
    Column("kind"),
    Column("block", kind="digest"),
    Column("tensors", kind="int"),
    Column("bytes", kind="bytes"),
    Column("shared_bytes", "shared", kind="bytes"),
    Column("shared_with", "shared with"),
)
_TENSORS = (
    Column("name", "tensor"),
    Column("dtype"),
    Column("shape", kind="shape"),
    Column("bytes", kind="bytes"),
    Column("digest", kind="digest"),
    Column("shared_with", "shared with"),
)
_FILES = (Column("path", "file"), Column("bytes", kind="bytes"))


@dataclass(frozen=True, repr=False)
class BlockView:
    """A block: its spec, its tensors, and the models that use it.

    Parameters
    ----------
    block : Block
    used_by : sequence of str
        Names of the models with this block in their chain.
    sharers : mapping of str to sequence of str, optional
        For a tensor's digest, the names of the models that have it.
    """

    block: Block
    used_by: Sequence[str] = ()
    sharers: Sharers = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return self.block.digest

    def tensors(self) -> Table:
        """Each tensor with its dtype, shape, size and digest."""
        return Table(f"block {self.digest[:SHORT_DIGEST]}", _TENSORS, self._rows())

    def to_json(self) -> dict[str, Any]:
        """Everything shown, under stable keys."""
        return {
            "digest": self.digest,
            "kind": self.block.kind,
            "spec": dict(self.block.spec),
            "bytes": self.block.nbytes,
            "used_by": list(self.used_by),
            "tensors": self._rows(),
        }

    def __repr__(self) -> str:
        lines = [
            f"{self.block.kind} block {self.digest[:SHORT_DIGEST]}  "
            f"{format_bytes(self.block.nbytes)}",
            f"used by  {', '.join(self.used_by) or 'no named model'}",
            f"spec     {canonical_json(dict(self.block.spec)).decode()}",
        ]
        table = Table("", self._columns(), self._rows())
        return "\n".join([*lines, "", repr(table)])

    def _repr_html_(self) -> str:
        head = _head(
            f"{self.block.kind} block",
            html.span(self.digest[:SHORT_DIGEST], "bz-dim", self.digest),
            html.span(format_bytes(self.block.nbytes)),
            html.span(_names(self.used_by) or "no named model", "bz-dim"),
        )
        return html.page(head + Table("", self._columns(), self._rows()).to_html() + self._spec())

    def _spec(self) -> str:
        spec = canonical_json(dict(self.block.spec)).decode()
        body = f'<pre class="bz-body">{html.text(spec)}</pre>'
        return html.fold(html.span("spec", "bz-name"), body)

    def _columns(self) -> Sequence[Column]:
        return _TENSORS if self.sharers else _TENSORS[:-1]

    def _rows(self) -> list[dict[str, Any]]:
        return [_tensor_row(name, ref, self.sharers) for name, ref in _ordered(self.block)]


@dataclass(frozen=True, repr=False)
class ModelView:
    """A model: its chain, its files, and which other models share each block.

    Parameters
    ----------
    name : str
        The ref it was asked for by, or its digest.
    model : Model
    blocks : mapping of str to Block
        The chain's blocks by digest, adapter blocks included; what is absent is shown by its
        digest alone.
    sharers : mapping of str to sequence of str, optional
        For the digest of a block or tensor, the names of the *other* models that have it.
    base : str, optional
        For an adapter, the name of its base.
    not_served : str, optional
        Why the runtime cannot run it; ``None`` where it can.
    loading : Loading, optional
        What loading it costs.
    """

    name: str
    model: Model
    blocks: Mapping[str, Block]
    sharers: Sharers = field(default_factory=dict)
    base: str | None = None
    not_served: str | None = None
    loading: Loading | None = None

    @property
    def digest(self) -> str:
        return self.model.digest

    def chain(self) -> Table:
        """One row a block, in order of execution; an adapter's row follows its hop's."""
        return Table(f"{self.name}: chain", _CHAIN, self._chain, note=self._sharing())

    def block(self, hop: str, adapter: int | None = None) -> BlockView:
        """The block at a hop, or one of the adapter blocks attached there.

        Parameters
        ----------
        hop : str
            Its name, such as ``"layers.3.attention"``.
        adapter : int, optional
            Which of the hop's adapters, from 0.

        Raises
        ------
        NotFoundError
            Where the chain has no such hop or adapter, or a detached adapter's base is absent.
        """
        found = self.model.hop(hop, self.name)
        if adapter is not None and not 0 <= adapter < len(found.adapters):
            raise NotFoundError(f"{self.name} has {len(found.adapters)} adapters on {hop}")
        digest = found.block if adapter is None else found.adapters[adapter]
        if digest not in self.blocks:
            raise NotFoundError(f"the block of {hop} is not in this zoo")
        users = sorted({self.name, *self.sharers.get(digest, ())})
        tensors = self.blocks[digest].tensors.values()
        sharers = {
            ref.digest: sorted({self.name, *self.sharers.get(ref.digest, ())}) for ref in tensors
        }
        return BlockView(self.blocks[digest], users, sharers)

    def files(self) -> Table:
        """The original files, as `export` gives them back."""
        rows = [{"path": recipe.path, "bytes": recipe.size} for recipe in self.model.files]
        return Table(f"{self.name}: files", _FILES, rows)

    def to_json(self) -> dict[str, Any]:
        """Everything shown, under stable keys."""
        return {
            "name": self.name,
            "digest": self.digest,
            "kind": self.model.kind,
            "family": self.model.family,
            "base": self.base or self.model.base or None,
            "wants": self.model.wants or None,
            "evidence": self.model.evidence or None,
            "detached": self.model.detached,
            "bytes": self.model.nbytes,
            "loading": vars(self.loading) if self.loading else None,
            "shared_bytes": self.shared_bytes,
            "not_served": self.not_served,
            "ties": dict(self.model.ties),
            "chain": self.chain().to_json(),
            "files": self.files().to_json(),
        }

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the distinct tensors the chain is bound to."""
        return sum(ref.nbytes for ref in self._distinct.values())

    @property
    def shared_bytes(self) -> int:
        """Of :attr:`tensor_bytes`, those that other models have as well."""
        return sum(ref.nbytes for ref in self._distinct.values() if self.sharers.get(ref.digest))

    def heading(self) -> str:
        """What stands above the chain: name, kind, size, digest, and why it is not served."""
        facts = "  ".join(self._facts())
        lines = [f"{self.name}  {facts}", self.digest]
        if self.not_served:
            lines.append(f"not served: {self.not_served}")
        return "\n".join(lines)

    def __repr__(self) -> str:
        chain = Table("", _CHAIN, self._chain, note=self._sharing())
        files = Table("", _FILES, self.files().rows)
        return "\n".join([self.heading(), "", repr(chain), "", repr(files)])

    def _repr_html_(self) -> str:
        head = _head(
            self.name,
            *(html.span(fact) for fact in self._facts()),
            html.span(self.digest[:SHORT_DIGEST], "bz-dim", self.digest),
        )
        if self.not_served:
            head += f"<div>not served: {html.text(self.not_served)}</div>"
        hops = "".join(self._hop_html(hop) for hop in self.model.chain)
        shared = html.span(self._sharing(), "bz-dim")
        chain = html.fold(
            html.span(f"Chain ({len(self.model.chain)} hops)", "bz-name") + shared,
            f'<div class="bz-body">{hops}</div>',
            opened=True,
        )
        count = f"Files ({len(self.model.files)})"
        size = html.span(format_bytes(self.model.nbytes), "bz-size")
        files = Table("", _FILES, self.files().rows).to_html()
        files = html.fold(html.span(count, "bz-name") + size, f'<div class="bz-body">{files}</div>')
        return html.page(head + chain + files)

    def _facts(self) -> list[str]:
        facts = [self.model.kind, self.model.family or "unknown family"]
        facts.append(format_bytes(self.model.nbytes))
        if self.model.detached:
            facts.append(f"detached; wants {self.model.wants or 'an unnamed base'}")
        elif self.model.base:
            facts.append(f"on {self.base or self.model.base[:SHORT_DIGEST]}")
        if self.model.evidence:
            facts.append(f"compact, by record {self.model.evidence[:SHORT_DIGEST]}")
        if self.loading:
            facts.append(str(self.loading))
        return facts

    def _sharing(self) -> str:
        total = self.tensor_bytes
        if not total or not self.sharers:
            return ""
        shared = self.shared_bytes
        return (
            f"{format_bytes(shared)} of {format_bytes(total)} ({format_percent(shared / total)}) "
            "shared with other models"
        )

    @cached_property
    def _distinct(self) -> dict[str, TensorRef]:
        used = [digest for hop in self.model.chain for digest in (hop.block, *hop.adapters)]
        blocks = [self.blocks[digest] for digest in used if digest in self.blocks]
        return {ref.digest: ref for block in blocks for ref in block.tensors.values()}

    @cached_property
    def _chain(self) -> list[dict[str, Any]]:
        rows = []
        for hop in self.model.chain:
            if hop.block or not hop.adapters:
                rows.append(self._row(hop.name, hop.kind, hop.block))
            rows += [self._row(hop.name, "adapter", digest) for digest in hop.adapters]
        return rows

    def _row(self, hop: str, kind: str, digest: str) -> dict[str, Any]:
        block = self.blocks.get(digest)
        return {
            "hop": hop,
            "kind": kind,
            "block": digest or None,
            "tensors": len(block.tensors) if block else None,
            "bytes": block.nbytes if block else None,
            "shared_bytes": _shared_bytes(block, self.sharers) if block else None,
            "shared_with": list(self.sharers.get(digest, ())),
        }

    def _hop_html(self, hop: Hop) -> str:
        parts = [(hop.name, hop.kind, hop.block)] if hop.block or not hop.adapters else []
        parts += [(hop.name, "adapter", digest) for digest in hop.adapters]
        return "".join(self._part_html(*part) for part in parts)

    def _part_html(self, hop: str, kind: str, digest: str) -> str:
        block = self.blocks.get(digest)
        if block is None:
            missing = html.span("not in this zoo", "bz-dim")
            return f"<div>{html.span(hop, 'bz-name')} {missing}</div>"
        shared = _shared_bytes(block, self.sharers)
        fraction = shared / block.nbytes if block.nbytes else 0.0
        label = f"{format_percent(fraction)} of its bytes are shared with other models"
        also = _names(self.sharers.get(digest, ()))
        summary = (
            html.span(f"+ {kind}" if kind == "adapter" else hop, "bz-name", hop)
            + html.span(_shape(block), "bz-name bz-dim")
            + html.span(format_bytes(block.nbytes), "bz-size")
            + html.bar(fraction, label)
            + html.span(digest[:SHORT_DIGEST], "bz-dim", digest)
            + (html.span(f"also in {also}", "bz-dim") if also else "")
        )
        rows = [_tensor_row(name, ref, self.sharers) for name, ref in _ordered(block)]
        columns = _TENSORS if self.sharers else _TENSORS[:-1]
        body = Table("", columns, rows).to_html()
        return html.fold(summary, f'<div class="bz-body">{body}</div>')


def _head(title: str, *spans: str) -> str:
    return f'<div class="bz-head"><b>{html.text(title)}</b>{"".join(spans)}</div>'


def _ordered(block: Block) -> list[tuple[str, TensorRef]]:
    return sorted(block.tensors.items())


def _tensor_row(name: str, ref: TensorRef, sharers: Sharers) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": ref.dtype,
        "shape": list(ref.shape),
        "bytes": ref.nbytes,
        "digest": ref.digest,
        "shared_with": list(sharers.get(ref.digest, ())),
    }


def _shape(block: Block) -> str:
    """The block's largest tensor, which says most about it."""
    if not block.tensors:
        return "no tensors"
    largest = max(block.tensors.values(), key=lambda ref: ref.nbytes)
    return f"{largest.dtype} {format_shape(largest.shape)}"


def _shared_bytes(block: Block, sharers: Sharers) -> int:
    distinct = {ref.digest: ref.nbytes for ref in block.tensors.values()}
    if sharers.get(block.digest):
        return sum(distinct.values())
    return sum(size for digest, size in distinct.items() if sharers.get(digest))


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    more = len(names) - _NAMES_SHOWN
    return f"{shown} and {more} more" if more > 0 else shown
