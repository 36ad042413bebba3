"""A swap is judged by what it does in the receiving model, and the proof is kept."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from blockzoo.equivalence import certify as certifying
from blockzoo.equivalence.certify import certify, certify_again
from blockzoo.equivalence.swap import find_swaps, swapped
from blockzoo.errors import BlockzooError, NotFoundError, SourceError, UsageError
from blockzoo.zoo import Zoo
from tests import planted as models

Texts = dict[str, Path]


def _two(texts: Texts) -> list[Path]:
    return [texts["own"], texts["plain"]]


def test_a_swapped_chain_is_transformers_model_with_those_weights(
    planted: Zoo, tmp_path: Path
) -> None:
    model = planted.model("base")
    swaps = find_swaps(planted, model, ["layers.1.mlp=far", "head=other"])
    chain = planted.chain(swapped(model, swaps))
    for name in ("base", "far", "other"):
        planted.export(name, tmp_path / name)
    expected = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    far = AutoModelForCausalLM.from_pretrained(tmp_path / "far")
    other = AutoModelForCausalLM.from_pretrained(tmp_path / "other")
    expected.model.layers[1].mlp = far.model.layers[1].mlp
    # the second norm belongs to the MLP's block
    expected.model.layers[1].post_attention_layernorm = far.model.layers[1].post_attention_layernorm
    expected.model.norm, expected.lm_head = other.model.norm, other.lm_head
    ids = torch.arange(12)[None] * 7
    with torch.no_grad():
        torch.testing.assert_close(chain(ids, logits_to_keep=0), expected(ids).logits)


def test_measured_losses_are_those_of_whole_models(planted: Zoo, texts: Texts) -> None:
    """Side by side and hop by hop, with padding and shared beginnings, nothing changes."""
    record = planted.certify("base", "layers.2.attention=far", texts["own"])
    model = planted.model("base")
    swaps = find_swaps(planted, model, "layers.2.attention=far")
    chains = [planted.chain(one) for one in (model, swapped(model, swaps))]
    tokenizer = planted.tokenizer(model)
    kl, same, tokens = 0.0, 0, 0
    for line in texts["own"].read_text().splitlines():
        ids = torch.tensor([tokenizer(line)["input_ids"]])
        p, q = (torch.log_softmax(chain(ids, logits_to_keep=0)[0].double(), -1) for chain in chains)
        kl += float((p.exp() * (p - q)).sum())
        same += int((p.argmax(-1) == q.argmax(-1)).sum())
        tokens += ids.shape[1]
    together = record.evidence.together
    assert together.tokens == tokens
    assert together.kl == pytest.approx(kl / tokens, rel=1e-3)
    assert together.top1 == pytest.approx(same / tokens, abs=1e-3)


@pytest.mark.parametrize(
    ("swap", "grades"),
    [
        ("layers.*=near", "A"),
        ("layers.1.mlp=permuted", "A"),
        ("layers.*=far", "rejected"),
        ("layers.1.mlp=other", "rejected"),
    ],
)
def test_planted_truths_are_judged_right(
    planted: Zoo, texts: Texts, swap: str, grades: str
) -> None:
    record = planted.certify("base", swap, _two(texts), own=texts["own"])
    assert record.grade == grades, record


def test_a_dead_head_costs_nothing(planted: Zoo, texts: Texts) -> None:
    record = planted.certify("quiet", "layers.1.attention=dead", _two(texts))
    assert record.grade == "A" and record.evidence.together.kl < 1e-9
    assert record.evidence.together.top1 == 1.0


def test_a_chain_is_certified_as_a_whole(planted: Zoo, texts: Texts) -> None:
    """Swaps that pass one by one may not pass together."""
    hops = [f"layers.{i}.{half}" for i in range(3) for half in ("attention", "mlp")]
    swaps = [f"{hop}=middling" for hop in hops]
    single = certify(planted, "base", swaps, _two(texts))
    (whole,) = certify(planted, "base", [swaps], _two(texts))
    assert len(whole.swaps) == 6
    largest = max(record.evidence.together.kl for record in single)
    assert whole.evidence.together.kl > 2 * largest


def test_what_the_model_does_by_itself_stands_beside(planted: Zoo, texts: Texts) -> None:
    told: list[int] = []

    def progress(what: str, done: int, total: int, new: int) -> None:
        told.append(done)

    record = planted.certify("base", "layers.0.mlp=near", texts["own"], progress=progress)
    # a text that goes through at once is told hop by hop
    assert told == sorted(told) and told[-1] == record.evidence.together.tokens
    assert len(set(told)) >= len(planted.model("base").chain) - 1
    assert 0 < record.floor.together.kl < 0.01 and 0 < record.int8.together.kl < 0.01
    text = repr(record)
    assert "its bf16" in text and "its int8" in text and "p99" in text
    assert "none of the texts is said to be of the tenant's own domain" in text
    assert "its bf16" in record._repr_html_()


def test_a_record_is_kept_and_certifying_again_gives_the_same(planted: Zoo, texts: Texts) -> None:
    record = planted.certify(
        "base", "layers.0.mlp=near", _two(texts), own=texts["own"], calibration=texts["calibration"]
    )
    read = planted.equivalence(record.digest[:10])
    assert read == record and read.encoded == record.encoded
    assert {text["domain"] for text in read.texts} == {"own", "plain"}
    assert read.calibration[0]["domain"] == "calibration" and read.own == "own"
    assert certify_again(planted, read).digest == record.digest
    row = next(r for r in planted.equivalences("base") if r["equivalence"] == record.digest)
    assert row["swaps"] == ["layers.0.mlp=near"] and row["gone"] == []
    assert planted.verify().ok


def test_certifying_again_wants_the_same_texts(planted: Zoo, texts: Texts, tmp_path: Path) -> None:
    text = tmp_path / "own.txt"
    shutil.copy(texts["own"], text)
    record = planted.certify("base", "layers.0.attention=near", text)
    moved = text.rename(tmp_path / "moved.txt")
    with pytest.raises(SourceError, match="is not here"):
        certify_again(planted, record)
    assert certify_again(planted, record, moved).digest == record.digest
    text.write_text(moved.read_text() + "w1 w2\n")
    shutil.copy(text, moved)
    with pytest.raises(SourceError, match="changed since"):
        certify_again(planted, record)


def test_many_candidates_are_corrected_for(planted: Zoo, texts: Texts) -> None:
    records = certify(
        planted, "base", [["layers.?.mlp=near", "head=other"]], _two(texts), each=True
    )
    assert [r.grade for r in records] == ["A", "A", "A", "rejected"]
    for record in records:
        assert record.candidates == 4
        for grade, p in record.judgement.p_values.items():
            assert record.judgement.corrected[grade] >= p
    assert records[0].judgement.corrected["A"] > records[0].judgement.p_values["A"]
    assert certify_again(planted, records[0]).digest == records[0].digest


def test_too_little_text_is_inconclusive(planted: Zoo, tmp_path: Path) -> None:
    few = models.write_text(tmp_path / "few.txt", 4, documents=5)
    record = planted.certify("base", "layers.0.mlp=near", few)
    assert record.grade == "inconclusive" and "5 documents" in record.judgement.why


def test_unusable_texts_are_refused_in_words(planted: Zoo, texts: Texts, tmp_path: Path) -> None:
    def refused(text: Path | list[Path], why: str, **more: Path) -> None:
        with pytest.raises(SourceError, match=why):
            planted.certify("base", "layers.0.mlp=near", text, **more)

    def written(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    refused(tmp_path / "absent.txt", "cannot read")
    refused(written("empty.txt", b" \n\n"), "is empty")
    refused(written("latin.txt", b"caf\xe9"), "is no UTF-8")
    refused(written("zeros.txt", b"a\0b"), "zero bytes")
    refused(written("tiny.txt", b"w1 w2 w3"), "too small")
    copy = written("copy.txt", texts["own"].read_bytes())
    refused([texts["own"], copy], "the same text")
    (tmp_path / "deep").mkdir()
    refused([texts["own"], models.write_text(tmp_path / "deep" / "own.txt", 9)], "domain 'own'")
    refused(texts["own"], "in the calibration text, too", calibration=copy)
    refused([], "no text to certify on")


def test_a_few_documents_in_both_texts_are_left_out(
    planted: Zoo, texts: Texts, tmp_path: Path
) -> None:
    shared = texts["calibration"].read_text().splitlines()[:3]
    mixed = tmp_path / "mixed.txt"
    mixed.write_text(texts["own"].read_text() + "\n".join(shared))
    record = planted.certify("base", "layers.0.mlp=near", mixed, calibration=texts["calibration"])
    assert record.texts[0]["left_out"] == 3 and record.texts[0]["documents"] == 60


def test_calibration_text_is_known_however_it_is_laid_out(
    planted: Zoo, texts: Texts, tmp_path: Path
) -> None:
    """A line a document or a paragraph a document, in capitals or with other spaces: the same."""
    lines = texts["own"].read_text().splitlines()
    short = [" ".join(line.split()[i : i + 8]) for line in lines for i in range(0, 40, 8)]
    layouts = {
        "paragraphs": "\n\n".join("\n".join(lines[i : i + 4]) for i in range(0, len(lines), 4)),
        "short": "\n".join(short),
        "spaced": "\n".join(line.replace(" ", "  ") for line in lines),
        "capital": "\n".join(lines).upper(),
    }
    for name, content in layouts.items():
        (tmp_path / f"{name}.txt").write_text(content)
    for name in layouts:
        for text, calibration in [(name, "own"), ("own", name)]:
            files = [texts.get(one, tmp_path / f"{one}.txt") for one in (text, calibration)]
            with pytest.raises(SourceError, match="in the calibration text, too"):
                planted.certify("base", "layers.0.mlp=near", files[0], calibration=files[1])


def test_a_document_that_comes_again_is_no_further_evidence(
    planted: Zoo, texts: Texts, tmp_path: Path
) -> None:
    few = texts["own"].read_text().splitlines()[:5]
    again = tmp_path / "again.txt"
    again.write_text("\n".join(line.replace(" ", " " * n) for n in range(1, 21) for line in few))
    record = planted.certify("base", "layers.0.mlp=near", again)
    assert record.grade == "inconclusive" and record.texts[0]["documents"] == 5
    assert record.texts[0]["left_out"] == 95


def test_swaps_that_make_no_sense_are_refused_in_words(planted: Zoo, tmp_path: Path) -> None:
    model = planted.model("base")
    for wanted, kind, why in [
        ("layers.1.mlp", UsageError, "is no swap"),
        ("layers.1.mlp=near@", UsageError, "is no swap"),
        ("layers.9.mlp=near", NotFoundError, "no hop 'layers.9.mlp'"),
        ("layers.1.mlp=near@layers.9.mlp", NotFoundError, "near has no hop"),
        ("layers.1.mlp=nobody", NotFoundError, "nobody"),
        ("embedding=near", UsageError, "the same block"),
        ("layers.1.mlp=near@layers.1.attention", BlockzooError, "is attention"),
        (["layers.1.mlp=near", "layers.*=far"], UsageError, "swapped twice"),
        ([], UsageError, "no block"),
    ]:
        with pytest.raises(kind, match=why):
            find_swaps(planted, model, wanted)
    planted.tag("near", "near:v2")
    assert len(find_swaps(planted, model, "layers.*=near:v2")) == 6
    (one,) = find_swaps(planted, model, "layers.1.mlp=near:v2@layers.2.mlp")
    assert one.donor_hop == "layers.2.mlp"


def test_blocks_of_another_shape_need_a_stitch(planted: Zoo, shared: Path, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    for name in ("base", "small"):
        zoo.ingest(shared / "family" / name, name=name)
    with pytest.raises(BlockzooError, match=r"is 160 × 432, where 256 × 688 ") as caught:
        find_swaps(zoo, zoo.model("base"), "layers.0.mlp=small")
    assert "stitch" in str(caught.value.hint)


def test_records_live_and_die_with_their_model(tmp_path: Path, texts: Texts) -> None:
    zoo = Zoo(tmp_path / "zoo")
    base = models.make_base(tmp_path / "base")
    zoo.ingest(base, name="base")
    near = models.variant(
        base, tmp_path / "near", lambda t: models.perturb(t, "model.layers.0.mlp", 0.002)
    )
    zoo.ingest(near, name="near")
    record = zoo.certify("base", "layers.0.mlp=near", texts["own"])
    zoo.gc(older_than=0).execute()
    assert zoo.equivalence(record.digest) == record
    zoo.remove("near")
    zoo.gc(older_than=0).execute()
    (row,) = zoo.equivalences()
    assert row["gone"] == [f"block {record.swaps[0].by[:12]} at layers.0.mlp"]
    with pytest.raises(NotFoundError, match="no longer here"):
        certify_again(zoo, record)
    assert zoo.verify().ok
    zoo.remove("base")
    zoo.gc(older_than=0).execute()
    assert len(zoo.equivalences()) == 0


def test_a_damaged_record_is_found_kept_and_repaired(tmp_path: Path, texts: Texts) -> None:
    zoo = Zoo(tmp_path / "zoo")
    base = models.make_base(tmp_path / "base")
    zoo.ingest(base, name="base")
    zoo.ingest(
        models.variant(base, tmp_path / "far", lambda t: models.perturb(t, "model.", 0.5)),
        name="far",
    )
    record = zoo.certify("base", "layers.0.mlp=far", texts["own"])
    path = zoo.objects.find("equivalences", record.digest)
    assert path is not None
    shutil.copytree(zoo.path, tmp_path / "copy")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"rejected", b"A"))
    fresh = Zoo(tmp_path / "zoo")
    assert [p.folder for p in fresh.verify().problems] == ["equivalences"]
    fresh.gc(older_than=0).execute()
    assert path.exists()
    with pytest.raises(BlockzooError, match="changed"):
        fresh.equivalence(record.digest)
    assert fresh.repair(tmp_path / "copy").ok
    assert Zoo(tmp_path / "zoo").equivalence(record.digest) == record


def test_an_adapter_receives_blocks_too(shared: Path, tmp_path: Path) -> None:
    """Whatever rides on the chain, prefixes included, rides on the swapped one."""
    zoo = Zoo(tmp_path / "zoo")
    zoo.ingest(shared / "family" / "base", name="base")
    zoo.ingest(shared / "family" / "novel-lora-merged", name="novel")
    text = shared / "texts" / "trec.evaluation.txt"
    for adapter in ("trec-prefix", "trec-dora"):
        zoo.ingest(shared / "family" / adapter, name=adapter, base="base")
        swaps = [["layers.5.mlp=novel"]]
        (record,) = certify(zoo, adapter, swaps, text, tokens=400)
        plain = certifying.certify(zoo, "base", swaps, text, tokens=400)[0]
        assert record.evidence.together.kl > 0
        assert record.evidence.together.kl != plain.evidence.together.kl
    with pytest.raises(UsageError, match="adapter on it"):
        find_swaps(zoo, zoo.model("novel"), "layers.0.attention=trec-dora")
