"""A tensor by itself, in byte planes: exponents compress, mantissas hardly."""

from __future__ import annotations

from blockzoo.codecs.kind import Kind
from blockzoo.tensors import TensorInfo

SUFFIX = ".planes"


def _shared(_info: TensorInfo, reference: TensorInfo | None) -> int | None:
    return 0 if reference is None else None


KIND = Kind(SUFFIX, _shared)
encode, decode = KIND.encode, KIND.decode
decode_range, stream = KIND.decode_range, KIND.stream
