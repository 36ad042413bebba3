"""The names a pickle of weights may use, and what each stands for here.

Nothing of torch is imported: a storage is a key and a size, a tensor is where it lies in a
storage. All of torch's ways to write a dense tensor are here; what is not (sparse and quantised
tensors, whole modules) is refused by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from blockzoo.errors import SourceError
from blockzoo.formats.pickle_reader import Function, Opaque, Refused
from blockzoo.tensors import DTYPE_BITS, TensorInfo

_MAX_WHOLE = 1 << 62
_MAX_RANK = 64  # NumPy's
#: a view may repeat elements (``expand``); beyond this it is written out to deceive
_MAX_EXPANDED_BYTES = 64 << 20


@dataclass(frozen=True)
class StorageType:
    """A class of storage, by the dtype of its elements; empty for untyped bytes."""

    dtype: str


@dataclass(frozen=True)
class Dtype:
    """A torch dtype, by its safetensors name; empty for those that have none."""

    torch_name: str
    dtype: str


@dataclass(frozen=True)
class Storage:
    """A reference to a storage: `nbytes` of it from `start`, read as `dtype` (empty: bytes)."""

    key: str
    dtype: str
    start: int
    nbytes: int


@dataclass(frozen=True)
class PickledTensor:
    """A tensor as a view on a storage; `offset` in bytes from the storage's start.

    `strides` are in elements.
    """

    storage: str
    info: TensorInfo
    offset: int
    strides: tuple[int, ...]

    @property
    def contiguous(self) -> bool:
        """Whether its elements lie in C order without gaps."""
        if not self.info.elements:
            return True
        expected = 1
        for size, stride in zip(reversed(self.info.shape), reversed(self.strides), strict=True):
            if size != 1 and stride != expected:
                return False
            expected *= size
        return True


@dataclass
class TorchPickle:
    """What a pickle refers to: all its storages (with their bytes) and all its tensors."""

    storages: dict[str, int] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    tensors: list[PickledTensor] = field(default_factory=list)

    def storage(self, persistent_id: Any) -> Storage:
        """The storage of a persistent id: ``("storage", type, key, location, elements[, view])``.

        ``view`` is ``(key, offset, elements)`` within the storage; only old files have it.
        """
        if not isinstance(persistent_id, tuple) or not persistent_id:
            raise Refused("its pickle has a persistent id that is none of torch's")
        if persistent_id[0] == "module":
            raise Refused("it holds a whole module with its source code, which would run")
        if len(persistent_id) not in (5, 6) or persistent_id[0] != "storage":
            raise Refused("its pickle has a persistent id that is none of torch's")
        kind, key, _, elements = persistent_id[1:5]
        view = persistent_id[5] if len(persistent_id) == 6 else None
        if not isinstance(kind, StorageType) or not isinstance(key, str | int):
            raise Refused("its pickle has a storage without type or key")
        width = DTYPE_BITS[kind.dtype] // 8 if kind.dtype else 1
        nbytes = _whole(elements, "storage size") * width
        key = str(key)
        if self.storages.setdefault(key, nbytes) != nbytes:
            raise Refused(f"its pickle gives two sizes for storage {key[:50]!r}")
        self.dtypes.setdefault(key, kind.dtype or "U8")
        start = 0
        if view is not None:
            if not isinstance(view, tuple) or len(view) != 3:
                raise Refused("its pickle has a malformed view of a storage")
            start = _whole(view[1], "view offset") * width
            end = start + _whole(view[2], "view size") * width
            if end > nbytes:
                raise Refused(f"its pickle has a view beyond the end of storage {key[:50]!r}")
            nbytes = end - start
        return Storage(key, kind.dtype, start, nbytes)

    def globals(self) -> dict[str, Any]:
        """The allow-list: what each ``module.name`` stands for."""
        names: dict[str, Any] = {
            "collections.OrderedDict": Function(_ordered_dict),
            "collections.Counter": Function(_opaque),
            "builtins.set": Function(_opaque),
            "__builtin__.set": Function(_opaque),
            "torch.device": Function(_opaque),
            "torch.Size": Function(_size),
            "torch.serialization._get_layout": Function(_opaque),
            "torch._utils._rebuild_tensor": Function(self._tensor),
            "torch._utils._rebuild_tensor_v2": Function(self._tensor_v2),
            "torch._utils._rebuild_tensor_v3": Function(self._tensor_v3),
            "torch._utils._rebuild_parameter": Function(_same),
            "torch._utils._rebuild_parameter_with_state": Function(_same),
            "torch._tensor._rebuild_from_type_v2": Function(_from_type),
        }
        names |= {name: Function(_same) for name in _TENSOR_TYPES}
        names |= {f"torch.{name}Storage": StorageType(d) for name, d in _STORAGES.items()}
        names |= {f"torch.cuda.{name}Storage": StorageType(d) for name, d in _STORAGES.items()}
        names["torch.storage.UntypedStorage"] = names["torch.UntypedStorage"] = StorageType("")
        names |= {f"torch.{name}": Dtype(name, dtype) for name, dtype in _DTYPES.items()}
        return names

    def _tensor(self, storage: Any, offset: Any, size: Any, stride: Any) -> PickledTensor:
        if not isinstance(storage, Storage):
            raise Refused("its pickle has a tensor without a storage")
        if not storage.dtype:
            raise Refused("its pickle has a tensor without a dtype")
        return self._view(storage, storage.dtype, offset, size, stride)

    def _tensor_v2(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        _requires_grad: Any,
        _hooks: Any,
        metadata: Any = None,
    ) -> PickledTensor:
        _no_lazy_bits(metadata)
        return self._tensor(storage, offset, size, stride)

    def _tensor_v3(
        self,
        storage: Any,
        offset: Any,
        size: Any,
        stride: Any,
        _requires_grad: Any,
        _hooks: Any,
        dtype: Any,
        metadata: Any = None,
    ) -> PickledTensor:
        _no_lazy_bits(metadata)
        if not isinstance(storage, Storage) or not isinstance(dtype, Dtype):
            raise Refused("its pickle has a tensor without storage or dtype")
        if not dtype.dtype:
            raise Refused(f"it holds a tensor of torch.{dtype.torch_name}, which cannot be kept")
        return self._view(storage, dtype.dtype, offset, size, stride)

    def _view(
        self, storage: Storage, dtype: str, offset: Any, size: Any, stride: Any
    ) -> PickledTensor:
        if not isinstance(size, tuple) or not isinstance(stride, tuple):
            raise Refused("its pickle has a tensor without shape or strides")
        if len(size) != len(stride) or len(size) > _MAX_RANK:
            raise Refused(f"its pickle has a tensor of {len(size)} sizes, {len(stride)} strides")
        shape = tuple(_whole(item, "dimension") for item in size)
        strides = tuple(_whole(item, "stride") for item in stride)
        try:
            info = TensorInfo(dtype, shape)
        except SourceError as error:
            raise Refused(f"its pickle has a tensor of {error.message[:200]}") from error
        width = DTYPE_BITS[dtype] // 8
        start = _whole(offset, "offset")
        last = start + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if info.elements and (last + 1) * width > storage.nbytes:
            raise Refused(
                f"its pickle has a tensor that ends {(last + 1) * width - storage.nbytes} bytes "
                f"beyond its storage {storage.key[:50]!r}"
            )
        if info.nbytes > max(storage.nbytes, _MAX_EXPANDED_BYTES):
            raise Refused(
                f"its pickle expands {storage.nbytes} bytes to a tensor of {info.nbytes} bytes"
            )
        where = storage.start + start * width if info.elements else 0
        tensor = PickledTensor(storage.key, info, where, strides)
        self.tensors.append(tensor)
        return tensor


def named_tensors(value: Any) -> dict[str, PickledTensor]:
    """The state dict in a checkpoint's value, where it is or under one of the usual keys.

    Raises
    ------
    Refused
        Where the value holds no tensors by name.
    """
    if isinstance(value, dict):
        for candidate in (value, *(value.get(key) for key in _WRAPPERS)):
            if isinstance(candidate, dict):
                named = {k: v for k, v in candidate.items() if isinstance(v, PickledTensor)}
                if named:
                    return _checked_names(named)
        if not value:
            return {}
    raise Refused("it holds no state dict: no tensors by name")


def _checked_names(named: dict[Any, PickledTensor]) -> dict[str, PickledTensor]:
    for name in named:
        try:
            name.encode("utf-8")
        except (AttributeError, UnicodeEncodeError) as error:
            raise Refused(f"it has a tensor whose name is no text ({str(name)[:50]!a})") from error
    return named


def _whole(value: Any, what: str) -> int:
    if type(value) is not int or not 0 <= value < _MAX_WHOLE:
        # no repr of containers: they may hold each other so that it takes for ever
        shown = str(value)[:50] if type(value) is int else f"type {type(value).__name__}"
        raise Refused(f"its pickle has a {what} of {shown}")
    return value


def _no_lazy_bits(metadata: Any) -> None:
    if metadata:
        raise Refused("it holds a tensor that is conjugated or negated only on reading")


def _ordered_dict(items: Any = ()) -> dict[Any, Any]:
    if items:
        raise Refused("its pickle fills an OrderedDict in a way that torch does not")
    return {}


def _size(items: Any) -> tuple[Any, ...]:
    # only a tuple, which is not copied: copies of something long would take memory
    if not isinstance(items, tuple):
        raise Refused("its pickle has a torch.Size that is made of no tuple")
    return items


def _opaque(*_: Any) -> Opaque:
    return Opaque()


def _same(tensor: Any, *_: Any) -> Any:
    return tensor


def _from_type(function: Any, kind: Any, arguments: Any, _state: Any) -> Any:
    if not isinstance(function, Function) or not isinstance(arguments, tuple):
        raise Refused("its pickle rebuilds a tensor in a way that torch does not")
    if not isinstance(kind, Function) or kind.call is not _same:
        raise Refused("its pickle has a tensor of an unknown subclass")
    return function.call(*arguments)


_WRAPPERS = ("state_dict", "model_state_dict", "model", "module")
_TENSOR_TYPES = (
    "torch.Tensor",
    "torch._tensor.Tensor",
    "torch.nn.Parameter",
    "torch.nn.parameter.Parameter",
    "torch.nn.parameter.Buffer",
)
_STORAGES = {
    "Float": "F32",
    "Double": "F64",
    "Half": "F16",
    "BFloat16": "BF16",
    "Long": "I64",
    "Int": "I32",
    "Short": "I16",
    "Char": "I8",
    "Byte": "U8",
    "Bool": "BOOL",
    "ComplexFloat": "C64",
}
_DTYPES = {
    "float32": "F32",
    "float64": "F64",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
    "complex32": "",
    "complex128": "",
    "float4_e2m1fn_x2": "",
}
