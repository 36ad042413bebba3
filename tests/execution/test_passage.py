"""Texts go through a chain hop by hop as they do in one call, with one block in memory."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from blockzoo.execution.chain import RunnableChain
from blockzoo.execution.executor import Executors
from blockzoo.execution.passage import Passage, batches, piece_length
from blockzoo.execution.tensors import Build, TensorSource
from blockzoo.tensors import TensorRef
from tests.execution.running import Loaded
from tests.execution.tiny import make

_FAMILIES = ["llama", "gemma3", "gpt2", "opt-norm-before", "neox-parallel", "mixtral"]


def documents(vocabulary: int = 64) -> list[tuple[int, list[int]]]:
    random = torch.Generator().manual_seed(3)
    lengths = [3, 11, 2, 7, 23, 11]
    return [
        (number, torch.randint(1, vocabulary, (length,), generator=random).tolist())
        for number, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("family", _FAMILIES)
def test_hop_by_hop_gives_what_one_call_gives(family: str, tmp_path: Path) -> None:
    chain = Loaded(make(family, tmp_path)).chain()
    passage = Passage(chain, batches(documents(), size=40))
    for _ in range(passage.hops):
        passage.step()
    found: dict[int, torch.Tensor] = {}
    for number, batch in enumerate(passage.batches):
        logits = passage.logits(passage.tokens(number))
        for document in batch.documents.tolist():
            found[document] = logits[batch.owners == document]
    for document, ids in documents():
        expected = chain(torch.tensor([ids]), logits_to_keep=0)[0]
        torch.testing.assert_close(found[document], expected, atol=1e-4, rtol=1e-4)


def test_documents_are_cut_sorted_and_padded() -> None:
    made = batches(documents(), length=10, size=40)
    assert sum(int(batch.mask.sum()) for batch in made) == sum(len(i) for _, i in documents())
    assert all(batch.ids.numel() <= 40 and batch.ids.shape[1] <= 10 for batch in made)
    assert all((batch.mask.diff(dim=1) >= 0).all() for batch in made)  # padded on the left
    owners = torch.cat([batch.owners for batch in made])
    assert torch.bincount(owners).tolist() == [len(ids) for _, ids in documents()]
    assert batches([]) == []


class Watched:
    """A source that makes each tensor anew, and knows how many bytes of them are alive."""

    def __init__(self, source: TensorSource) -> None:
        self._source = source
        self.alive = self.most = 0

    def tensor(self, ref: TensorRef) -> torch.Tensor:
        made = self._source.tensor(ref).clone()
        self.alive += made.nbytes
        self.most = max(self.most, self.alive)
        weakref.finalize(made, self._gone, made.nbytes)
        return made

    def _gone(self, size: int) -> None:
        self.alive -= size

    def derived(self, key: str, parts: Sequence[TensorRef], build: Build) -> torch.Tensor:
        return build([self.tensor(part) for part in parts])


def test_one_block_is_in_memory_at_a_time(tmp_path: Path) -> None:
    loaded = Loaded(make("llama", tmp_path))
    source = Watched(loaded.source)
    chain = RunnableChain(loaded.model, loaded.blocks, loaded.config, source, executors=Executors())
    passage = Passage(chain, batches(documents()))
    while passage.hops > passage.done:
        passage.step()
        assert source.alive == 0
    passage.logits(passage.tokens(0))
    sizes = [sum(4 * r.elements for r in b.tensors.values()) for b in loaded.blocks.values()]
    # where embeddings are not tied, the head has a norm more
    assert 0 < source.most <= max(sizes)


def test_a_fork_goes_its_own_way(tmp_path: Path) -> None:
    chain = Loaded(make("llama", tmp_path)).chain()
    first = Passage(chain, batches(documents()))
    first.step()
    second = first.fork(chain)
    before = [hidden.clone() for hidden in first.hidden]
    second.step()
    assert all(torch.equal(a, b) for a, b in zip(first.hidden, before, strict=True))
    applied = list(first.applied(1, first.hidden))
    assert all(torch.equal(a, b) for a, b in zip(applied, second.hidden, strict=True))


def test_pieces_are_no_longer_than_a_model_was_made_for(tmp_path: Path) -> None:
    for family in ("gpt2", "llama"):
        chain = Loaded(make(family, tmp_path)).chain()
        most = chain.context_length
        assert most is not None and piece_length(chain) == min(most, 512)
    longest = Loaded(make("opt-norm-before", tmp_path)).chain()
    cut = batches([(0, [5] * 3 * piece_length(longest))], piece_length(longest))
    Passage(longest, cut)  # learned positions suffice
