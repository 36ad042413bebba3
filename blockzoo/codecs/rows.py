"""A tensor that has grown or shrunk, such as an embedding with added tokens.

The leading rows that it shares with its *reference* are kept as a difference (of nothing, where
they are the same), the new rows as byte planes.
"""

from __future__ import annotations

from blockzoo.codecs.kind import Kind
from blockzoo.codecs.words import comparable, count_words
from blockzoo.tensors import TensorInfo

SUFFIX = ".rows"


def _shared(info: TensorInfo, reference: TensorInfo | None) -> int | None:
    if reference is None or not (info.shape and reference.shape):
        return None
    if info.shape[1:] != reference.shape[1:] or not comparable(info.dtype, reference.dtype):
        return None
    return min(count_words(info), count_words(reference))


KIND = Kind(SUFFIX, _shared)
encode, decode = KIND.encode, KIND.decode
decode_range, stream = KIND.decode_range, KIND.stream
