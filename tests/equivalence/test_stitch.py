"""Stitches between two models of different width whose one difference is a rotation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from blockzoo.equivalence.certify import certify_again
from blockzoo.equivalence.stitch_fit import Settings
from blockzoo.errors import BlockzooError
from blockzoo.zoo import Zoo
from tests.planted import write_text
from tests.stitching import cut_rows, pair_zoo, rename, stitchable

__all__ = ["pair_zoo", "stitchable"]

Files = dict[str, Path]
QUICK = Settings(steps=4)


def test_a_chain_across_widths_is_certified_and_noise_is_not(
    pair_zoo: Zoo, stitchable: Files
) -> None:
    done = pair_zoo.stitch(
        "narrow@1", "wide@1", "mixed", calibration=stitchable["fitted"],
        text=[stitchable["held"], stitchable["more"]], settings=Settings(steps=20, rate=1e-3),
    )  # fmt: skip
    told = {chain: figures["together"] for chain, figures in done.perplexity.items()}
    assert done.record is not None and done.record.grade in ("A", "B")
    assert abs(told["stitched"] / told["target"] - 1) < 0.01
    assert done.lost and set(done.margins) == {"random weights", "shuffled tokens", "zero map"}
    assert all(told[control] > 1.1 * told["stitched"] for control in done.margins)
    assert done.parameters == 32 * 48 + 2 * 32 + 2 * 48
    # the record is one of wide's, is listed, and can be repeated
    record = pair_zoo.equivalence(done.record.digest[:12])
    assert record.model == pair_zoo.resolve("wide") and record.stand_in == done.digest
    assert certify_again(pair_zoo, record).digest == record.digest
    assert pair_zoo.equivalences("wide")[0]["what"] == "all=mixed"
    assert "the whole chain of" in repr(done) and "control: zero map" in repr(done)


def test_one_stitch_stands_at_several_positions(pair_zoo: Zoo, stitchable: Files) -> None:
    given: dict[str, Any] = {"text": stitchable["held"], "controls": False}
    first = pair_zoo.stitch(
        "narrow@1", "wide@1", "one", calibration=stitchable["fitted"], also=[(2, 2)],
        settings=Settings(steps=0), **given,
    )  # fmt: skip
    names = {"two": ("narrow@2", "wide@2"), "skipping": ("narrow@1", "wide@2")}
    found = {name: pair_zoo.stitch(*ends, name, using="one", **given)
             for name, ends in names.items()}  # fmt: skip
    for name, done in found.items():
        assert done.block == first.block and done.digest != first.digest
        assert len(pair_zoo.model(name).chain) == len(pair_zoo.model("wide").chain) + (
            1 if name == "two" else -1
        )
    assert (
        found["two"].perplexity["stitched"]["together"]
        < 1.05 * (first.perplexity["stitched"]["together"])
    )
    assert [hop.at for hop in pair_zoo.model("skipping").chain if hop.kind == "stitch"] == [(1, 2)]
    with pytest.raises(BlockzooError, match=r"not fitted for 0:1.*from 1, 2 to 1, 2"):
        pair_zoo.stitch("narrow@0", "wide@1", "none", using="one")
    with pytest.raises(BlockzooError, match="from width 32 to 48, not from 48 to 32"):
        pair_zoo.stitch("wide@1", "narrow@1", "none", using="one")
    with pytest.raises(BlockzooError, match="narrow has no stitch"):
        pair_zoo.stitch("narrow@1", "wide@1", "none", using="narrow")


def test_fitting_is_repeatable_and_distillation_helps(pair_zoo: Zoo, stitchable: Files) -> None:
    def fitted(steps: int) -> Any:
        return pair_zoo.stitch(
            "narrow@2", "tuned@0", "mixed", calibration=stitchable["fitted"],
            text=stitchable["held"], settings=Settings(steps=steps), controls=False,
        )  # fmt: skip

    plain, before = fitted(0), torch.random.get_rng_state()
    first, again = fitted(30), fitted(30)
    assert first.digest == again.digest != plain.digest
    assert torch.equal(before, torch.random.get_rng_state())
    kl = [done.record.evidence.together.kl for done in (plain, first)]
    assert kl[1] < 0.9 * kl[0]


def test_it_is_kept_and_goes_like_any_model(pair_zoo: Zoo, stitchable: Files) -> None:
    done = pair_zoo.stitch(
        "narrow@1", "wide@1", "mixed", calibration=stitchable["fitted"], settings=QUICK
    )
    assert not done.perplexity and "nothing was measured" in repr(done)
    config = pair_zoo.config(pair_zoo.model("mixed"))
    assert config["num_hidden_layers"] == 3 and config["hidden_size"] == 48
    assert config["blockzoo_stitch"] == {"at": [1, 1], "widths": [32, 48]}
    with pytest.raises(BlockzooError, match="mixed is stitched"):
        pair_zoo.similarity("narrow", "mixed", stitchable["held"])
    pair_zoo.remove("narrow")
    pair_zoo.remove("wide")
    pair_zoo.remove("tuned")
    pair_zoo.gc(older_than=0).execute()
    assert pair_zoo.verify().ok
    logits = pair_zoo.chain(pair_zoo.model("mixed")).forward(torch.tensor([[3, 4, 5]]))
    assert logits.shape == (1, 1, 120) and logits.isfinite().all()
    with pytest.raises(BlockzooError, match="mixed is stitched"):
        pair_zoo.export("mixed", pair_zoo.path.parent / "out")
    with pytest.raises(BlockzooError, match="has the hop stitch"):
        pair_zoo.stitch("mixed@1", "mixed@1", "again", calibration=stitchable["fitted"])
    pair_zoo.remove("mixed")
    pair_zoo.gc(older_than=0).execute()
    assert not list(pair_zoo.objects.all("tensors"))


@pytest.mark.parametrize(
    ("ends", "words"),
    [
        (("narrow", "wide@1"), "'narrow' names no layer"),
        (("narrow@x", "wide@1"), "'narrow@x' names no layer"),
        (("narrow@4", "wide@1"), "narrow has 3 layers"),
        (("narrow@1", "wide@3"), "wide has no layer 3"),
        (("nobody@1", "wide@1"), "nobody"),
    ],
)
def test_positions_are_checked(
    pair_zoo: Zoo, stitchable: Files, ends: tuple[str, str], words: str
) -> None:
    with pytest.raises(BlockzooError, match=words):
        pair_zoo.stitch(*ends, "mixed", calibration=stitchable["fitted"])


def test_texts_are_checked(pair_zoo: Zoo, stitchable: Files, tmp_path: Path) -> None:
    def refused(words: str, **given: Any) -> None:
        with pytest.raises(BlockzooError, match=words):
            pair_zoo.stitch("narrow@1", "wide@1", "mixed", **given)

    few = write_text(tmp_path / "few.txt", 1, documents=5)
    empty, binary = tmp_path / "empty.txt", tmp_path / "binary.txt"
    empty.write_text("\n\n")
    binary.write_bytes(b"\x00\xff\x00")
    refused("no text to fit on")
    refused(r"too small: 200 tokens, where a stitch of width 48 takes at least", calibration=few)
    refused("is empty", calibration=empty)
    refused("is not text", calibration=binary)
    fitted = stitchable["fitted"]
    refused("in the calibration text, too", calibration=fitted, text=fitted)
    refused("names no layer|further positions", calibration=fitted, using="wide", also=[(2, 2)])
    assert "mixed" not in pair_zoo.names()


def test_models_that_do_not_go_together_are_refused(
    pair_zoo: Zoo, stitchable: Files, tmp_path: Path
) -> None:
    def other(name: str, **config: Any) -> Path:
        folder = tmp_path / name
        shutil.copytree(stitchable["wide"], folder)
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return folder

    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}
    pair_zoo.ingest(other("turning", **rope), name="turning")
    renamed = other("renamed")
    rename(renamed, "w7", "seven")
    pair_zoo.ingest(renamed, name="renamed")
    fewer = other("fewer")
    cut_rows(fewer, 100)
    pair_zoo.ingest(fewer, name="fewer")
    for name, words in (
        ("turning", r"rope_parameters.rope_theta \(10000.0 and 500.0\)"),
        ("renamed", "different tokenizers"),
        ("fewer", "vocabulary of 120 tokens, and fewer foretells one of 100"),
    ):
        with pytest.raises(BlockzooError, match=words):
            pair_zoo.stitch("narrow@1", f"{name}@1", "no", calibration=stitchable["fitted"])
