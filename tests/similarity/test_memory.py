"""Comparing two models, and certifying a swap, takes no more memory for more layers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from blockzoo.execution.passage import batches
from blockzoo.similarity.activations import FEW, SAMPLES, _sampled_rows
from blockzoo.zoo import Zoo
from tests.planted import WORDS, make_base, write_text

_STATUS = Path("/proc/self/status")
_FEW, _MANY = 2, 8
_WIDTH, _INNER = 512, 1408
_LAYER = 4 * (4 * _WIDTH * _WIDTH + 3 * _WIDTH * _INNER)  # bytes in float32: 12.8 MB
_MB = 1 << 20

pytestmark = pytest.mark.skipif(not _STATUS.exists(), reason="memory is read from /proc")


def own_memory() -> int:
    """Bytes of this process that are no mapped file."""
    lines = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
    return int(lines["RssAnon"].split()[0]) * 1024


def taken(call: Callable[[], object]) -> int:
    """By how many bytes the process's own memory rises during a call."""
    before = own_memory()
    peak, ended = [before], threading.Event()

    def watch() -> None:
        while not ended.is_set():
            peak[0] = max(peak[0], own_memory())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        ended.set()
        watcher.join()
    return peak[0] - before


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Two models of a few layers, and two of many."""
    folder = tmp_path_factory.mktemp("layers")
    zoo = Zoo(folder / "zoo")
    for layers in (_FEW, _MANY):
        for seed in (1, 2):
            source = make_base(folder / f"{layers}-{seed}")
            torch.manual_seed(seed)
            config = LlamaConfig(
                vocab_size=WORDS,
                hidden_size=_WIDTH,
                intermediate_size=_INNER,
                num_hidden_layers=layers,
                num_attention_heads=8,
                num_key_value_heads=8,
                tie_word_embeddings=False,
            )
            LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(source)
            zoo.ingest(source, name=f"{layers}-{seed}")
    return zoo


def test_similarity_takes_as_much_for_many_layers_as_for_few(zoo: Zoo, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 1, documents=10)

    def compare(layers: int) -> int:
        return taken(lambda: zoo.similarity(f"{layers}-1", f"{layers}-2", text))

    compare(_FEW)  # what is made once
    few, many = compare(_FEW), compare(_MANY)
    # of each hop there remains a vector of n(n-1)/2 numbers: 0.3 MB for 400 tokens
    assert many - few < 16 * _MB < 2 * (_MANY - _FEW) * _LAYER / 8


def test_certifying_takes_as_much_for_many_layers_as_for_few(zoo: Zoo, tmp_path: Path) -> None:
    text = write_text(tmp_path / "text.txt", 1, documents=10)

    def certify(layers: int) -> int:
        swap = f"layers.1.mlp={layers}-2"
        return taken(lambda: zoo.certify(f"{layers}-1", swap, text))

    certify(_FEW)
    few, many = certify(_FEW), certify(_MANY)
    assert many - few < 12 * _MB < (_MANY - _FEW) * _LAYER / 5


def test_what_is_kept_of_very_many_hops_is_bounded_too() -> None:
    cut = batches([(0, [1] * 2000)])
    counts = [sum(map(len, _sampled_rows(cut, hops))) for hops in (40, 400, 4000)]
    assert counts[0] == SAMPLES and counts[2] == FEW
    assert 400 * counts[1] ** 2 * 2 <= 64 * _MB < 400 * (counts[1] + 2) ** 2 * 2
