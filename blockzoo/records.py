"""What the zoo keeps beside tensors: blocks, hops, file recipes and models, as plain data.

Each has one canonical JSON form; a block's or model's digest is the BLAKE3 of that form. See
``docs/ARCHITECTURE.md`` for how they fit together.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from blockzoo.errors import NotFoundError
from blockzoo.tensors import TensorRef, bytes_digest, canonical_json

BLOCK_KINDS = (
    "embedding",
    "attention",
    "mlp",
    "moe",
    "layer",
    "head",
    "adapter",
    "stitch",
    "surrogate",
)


@dataclass(frozen=True)
class Block:
    """A named set of tensors and the spec that says what they compute.

    Parameters
    ----------
    kind : str
        One of :data:`BLOCK_KINDS`.
    spec : dict
        JSON. For the blocks of a model ``{"family": …, "config": {…}, "layer": {…}}``: the
        config values that change the result (`partition.spec`). For an adapter block see
        `partition.adapters`.
    tensors : dict of str to TensorRef
        By local name: a tensor's name in transformers' causal LM is the hop's prefix followed
        by the local name.
    """

    kind: str
    spec: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]

    def to_json(self) -> dict[str, Any]:
        tensors = {name: ref.to_json() for name, ref in self.tensors.items()}
        return {"format": 1, "kind": self.kind, "spec": dict(self.spec), "tensors": tensors}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Block:
        tensors = {name: TensorRef.from_json(ref) for name, ref in data["tensors"].items()}
        return cls(data["kind"], data["spec"], tensors)

    @cached_property
    def encoded(self) -> bytes:
        return canonical_json(self.to_json())

    @cached_property
    def digest(self) -> str:
        return bytes_digest(self.encoded)

    @property
    def nbytes(self) -> int:
        """Bytes of the block's tensors, each distinct one counted once."""
        return sum({ref.digest: ref.nbytes for ref in self.tensors.values()}.values())


@dataclass(frozen=True)
class Hop:
    """A place in a chain.

    Parameters
    ----------
    name : str
        Unique in its chain: ``"embedding"``, ``"layers.3.attention"``, ``"head"``.
    kind : str
        The block's kind.
    prefix : str
        What stands before a local tensor name in transformers' name for it, such as
        ``"model.layers.3."``; empty for embedding and head.
    block : str
        Digest.
    adapters : tuple of str
        Digests of the adapter blocks attached here.
    at : tuple of int
        For a stitch: after how many layers of the model it comes from it stands, and before
        which layer of the model that follows. The same block may stand at several positions.
    """

    name: str
    kind: str
    prefix: str
    block: str
    adapters: tuple[str, ...] = ()
    at: tuple[int, ...] = ()

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {
            "name": self.name,
            "kind": self.kind,
            "prefix": self.prefix,
            "block": self.block,
        }
        data |= {"at": list(self.at)} if self.at else {}
        return data | ({"adapters": list(self.adapters)} if self.adapters else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Hop:
        adapters, at = tuple(data.get("adapters", ())), tuple(data.get("at", ()))
        return cls(data["name"], data["kind"], data["prefix"], data["block"], adapters, at)


@dataclass(frozen=True)
class Part:
    """One run of a file's bytes: a tensor's, a stored file's, given literally, or made.

    ``source`` is ``"tensor"`` or ``"file"`` (then ``digest`` names the object), ``"bytes"``
    (then ``literal`` has them), or ``"chain"``: the weights that the model's own chain comes to,
    in the order of the file's header. ``size`` is in bytes.
    """

    source: Literal["tensor", "file", "bytes", "chain"]
    size: int
    digest: str = ""
    literal: bytes = b""

    def to_json(self) -> list[Any]:
        if self.source == "bytes":
            return ["bytes", base64.b64encode(self.literal).decode()]
        return [self.source, self.size, self.digest]

    @classmethod
    def from_json(cls, data: list[Any]) -> Part:
        if data[0] == "bytes":
            literal = base64.b64decode(data[1])
            return cls("bytes", len(literal), literal=literal)
        return cls(data[0], data[1], data[2])


@dataclass(frozen=True)
class Recipe:
    """How one original file is put together again: its path and its parts, in order."""

    path: str
    parts: tuple[Part, ...]
    executable: bool = False

    @property
    def size(self) -> int:
        return sum(part.size for part in self.parts)

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"path": self.path, "parts": [p.to_json() for p in self.parts]}
        return data | ({"executable": True} if self.executable else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Recipe:
        parts = tuple(Part.from_json(p) for p in data["parts"])
        return cls(data["path"], parts, data.get("executable", False))


@dataclass(frozen=True)
class Model:
    """A chain and the recipes that give the original files back.

    Parameters
    ----------
    kind : {"model", "adapter"}
    family : str
        The family's name in `partition`; ``""`` where unknown. For an adapter its type, such
        as ``"lora"``.
    chain : tuple of Hop
        In order of execution. An attached adapter has its base's chain with its own adapter
        blocks on it; a detached one has hops with empty ``block``.
    files : tuple of Recipe
    ties : dict of str to str
        Tensor names that stand for another's tensor: ``{"lm_head.weight":
        "model.embed_tokens.weight"}``; both are transformers' names.
    base : str
        For an attached adapter, the digest of its base model.
    wants : str
        For an adapter, the name of the base it asks for.
    evidence : str
        For a compact version of another model, the digest of the record that certifies it.
    """

    kind: Literal["model", "adapter"]
    family: str
    chain: tuple[Hop, ...]
    files: tuple[Recipe, ...]
    ties: Mapping[str, str] = field(default_factory=dict)
    base: str = ""
    wants: str = ""
    evidence: str = ""

    def to_json(self) -> dict[str, Any]:
        data = {
            "format": 1,
            "kind": self.kind,
            "family": self.family,
            "chain": [hop.to_json() for hop in self.chain],
            "files": [recipe.to_json() for recipe in self.files],
            "ties": dict(self.ties),
            "base": self.base,
            "wants": self.wants,
        }
        return data | ({"evidence": self.evidence} if self.evidence else {})

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Model:
        return cls(
            data["kind"],
            data["family"],
            tuple(Hop.from_json(h) for h in data["chain"]),
            tuple(Recipe.from_json(f) for f in data["files"]),
            data["ties"],
            data["base"],
            data["wants"],
            data.get("evidence", ""),
        )

    @cached_property
    def encoded(self) -> bytes:
        return canonical_json(self.to_json())

    @cached_property
    def digest(self) -> str:
        return bytes_digest(self.encoded)

    def hop(self, name: str, of: str) -> Hop:
        """The hop of that name; in the error, the model is called `of`.

        Raises
        ------
        NotFoundError
        """
        for hop in self.chain:
            if hop.name == name:
                return hop
        names = ", ".join(hop.name for hop in self.chain)
        raise NotFoundError(f"{of} has no hop {name!r}", hint=f"it has {names}")

    def tensors(self, blocks: Mapping[str, Block]) -> dict[str, TensorRef]:
        """The tensors of the chain's own blocks by transformers' names, in the chain's order.

        Parameters
        ----------
        blocks : mapping of str to Block
            By digest.
        """
        return {
            f"{hop.prefix}{local}": ref
            for hop in self.chain
            for local, ref in blocks[hop.block].tensors.items()
        }

    def bound(self, blocks: Mapping[str, Block]) -> dict[str, TensorRef]:
        """`tensors`, and by their names those that are tied to one of them."""
        named = self.tensors(blocks)
        return named | {name: named[kept] for name, kept in self.ties.items() if kept in named}

    @property
    def nbytes(self) -> int:
        """Bytes of the original files."""
        return sum(recipe.size for recipe in self.files)

    @property
    def detached(self) -> bool:
        """Whether this is an adapter whose base is not in the zoo yet."""
        return self.kind == "adapter" and not self.base

    @property
    def compact(self) -> bool:
        """Whether this is another model's blocks and, laid on them, what it differs by."""
        return self.kind == "model" and any(hop.adapters for hop in self.chain)


def decode_json(data: bytes) -> Any:
    """Parse JSON bytes as written by this module."""
    return json.loads(data)
