"""A near-copy: the difference from another tensor of the same shape, its *reference*.

Dtypes may differ among bf16, fp16 and fp32: the reference is rounded to the tensor's dtype first,
so an exact copy in another dtype takes next to nothing.
"""

from __future__ import annotations

from blockzoo.codecs.kind import Kind
from blockzoo.codecs.words import comparable, count_words
from blockzoo.tensors import TensorInfo

SUFFIX = ".delta"


def _shared(info: TensorInfo, reference: TensorInfo | None) -> int | None:
    if reference is None or info.shape != reference.shape:
        return None
    return count_words(info) if comparable(info.dtype, reference.dtype) else None


KIND = Kind(SUFFIX, _shared)
encode, decode = KIND.encode, KIND.decode
decode_range, stream = KIND.decode_range, KIND.stream
