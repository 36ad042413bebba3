"""Which chains a model's certificates allow to be served."""

from __future__ import annotations

import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from blockzoo.equivalence.chains import Certificates
from blockzoo.equivalence.grade import Verdict
from blockzoo.equivalence.record import Equivalence
from blockzoo.errors import UsageError
from blockzoo.store.session import Session
from blockzoo.tensors import bytes_digest, canonical_json
from blockzoo.zoo import Zoo


@pytest.fixture
def zoo(planted: Zoo, tmp_path: Path) -> Zoo:
    shutil.copytree(planted.path, tmp_path / "zoo")
    for path in (tmp_path / "zoo" / "equivalences").glob("*/*.json"):
        path.unlink()
    return Zoo(tmp_path / "zoo")


@pytest.fixture
def record(zoo: Zoo, texts: dict[str, Path]) -> Equivalence:
    return zoo.certify("near", "layers.*=base", [texts["plain"]], own=texts["own"])


def _keep(zoo: Zoo, record: Equivalence, verdict: Verdict, **changes: Any) -> Equivalence:
    """The record as if it had come out otherwise."""
    judged = replace(record.judgement, verdict=verdict)
    other = replace(record, judgement=judged, **changes)
    with Session(zoo.objects) as session:
        session.equivalence(other.digest, other.encoded)
        assert session.commit()
    return other


def _remove(zoo: Zoo, record: Equivalence) -> None:
    path = zoo.objects.find("equivalences", record.digest)
    assert path is not None
    path.unlink()


def test_a_chain_carries_its_certificate(zoo: Zoo, record: Equivalence) -> None:
    assert record.grade == "A"
    [chain] = zoo.chains("near")
    assert chain.name == f"A:{record.digest[:12]}"
    assert chain.swaps == record.swaps and chain.own == "own"
    assert chain.kl == max(figures.kl for figures in record.evidence.domains.values())
    base, model = zoo.model("base"), zoo.model("near")
    layers = [hop.block for hop in base.chain if hop.name.startswith("layers.")]
    assert [hop.block for hop in chain.model.chain][1:-1] == layers
    assert chain.model.digest not in (model.digest, base.digest)
    assert zoo.chains("base") == []


def test_only_grades_as_good_as_asked_for_count(zoo: Zoo, record: Equivalence) -> None:
    _remove(zoo, record)
    kept = _keep(zoo, record, "C")
    assert zoo.chains("near", "A") == zoo.chains("near", "B") == []
    assert [chain.record for chain in zoo.chains("near", "C")] == [kept.digest]
    with pytest.raises(UsageError, match="no grade 'D'"):
        zoo.chains("near", "D")


def test_the_worst_certificate_of_a_chain_counts(zoo: Zoo, record: Equivalence) -> None:
    worse = _keep(zoo, record, "B")
    assert [chain.name for chain in zoo.chains("near")] == [f"B:{worse.digest[:12]}"]
    assert zoo.chains("near", "A") == []
    _keep(zoo, record, "inconclusive")
    assert len(zoo.chains("near")) == 1
    _keep(zoo, record, "rejected")
    assert zoo.chains("near", "C") == []


def test_a_certificate_counts_only_with_the_tenants_own_text(zoo: Zoo, record: Equivalence) -> None:
    _remove(zoo, record)
    kept = _keep(zoo, record, "A", own="")
    assert zoo.chains("near") == []
    assert [chain.record for chain in zoo.chains("near", any_text=True)] == [kept.digest]


def test_records_are_seen_when_they_come_and_when_they_go(zoo: Zoo, record: Equivalence) -> None:
    certificates, digest = Certificates(zoo), zoo.resolve("near")
    assert len(certificates.chains(digest, "C")) == 1
    for number in range(30):  # at once: a folder's time of change may not tell
        other = _keep(zoo, record, "B", candidates=number + 2)
        [chain] = certificates.chains(digest, "C")
        assert chain.grade == "B"
        _remove(zoo, other)
        [chain] = certificates.chains(digest, "C")
        assert chain.grade == "A"


def test_a_chain_with_a_block_that_is_gone_is_left_out(zoo: Zoo, record: Equivalence) -> None:
    certificates, digest = Certificates(zoo), zoo.resolve("near")
    assert certificates.chains(digest, "A")
    path = zoo.objects.find("blocks", record.swaps[0].by)
    assert path is not None
    path.unlink()
    assert certificates.chains(digest, "A") == []


def test_a_zoo_without_certificates_has_no_chains(tmp_path: Path) -> None:
    assert Certificates(Zoo(tmp_path / "zoo")).chains("0" * 64, "C") == []


def test_a_damaged_record_is_passed_over_with_one_warning(zoo: Zoo, record: Equivalence) -> None:
    other = _keep(zoo, record, "C", settings={"length": 1})
    path = zoo.objects.find("equivalences", other.digest)
    assert path is not None
    sound = path.read_bytes()
    path.unlink()
    path.write_bytes(sound[:-9] + b"x" + sound[-8:])
    certificates = Certificates(zoo)
    model = zoo.resolve("near")
    with pytest.warns(UserWarning, match=f"equivalence {other.digest[:12]} .* is damaged"):
        assert [chain.grade for chain in certificates.chains(model, "C")] == ["A"]
    _keep(zoo, record, "A", settings={"length": 2})  # looked at again
    with warnings.catch_warnings(action="error"):
        assert [chain.grade for chain in certificates.chains(model, "C")] == ["A"]
    path.unlink()
    path.write_bytes(sound)  # as `repair` does
    assert [chain.grade for chain in certificates.chains(model, "C")] == ["C"]


def test_a_record_of_another_format_and_a_stray_file_are_passed_over(
    zoo: Zoo, record: Equivalence
) -> None:
    data = record.to_json()
    encoded = canonical_json(data | {"judgement": data["judgement"] | {"new": 1}})
    digest = bytes_digest(encoded)
    with Session(zoo.objects) as session:
        session.equivalence(digest, encoded)
        assert session.commit()
    (Path(zoo.path) / "equivalences" / ".DS_Store").write_bytes(b"stray")
    with pytest.warns(UserWarning, match=f"equivalence {digest[:12]} is of another format"):
        assert [chain.grade for chain in zoo.chains("near")] == ["A"]


@pytest.mark.filterwarnings("error")
def test_a_record_that_is_collected_while_it_is_read_is_just_gone(
    zoo: Zoo, record: Equivalence, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = _keep(zoo, record, "C", settings={"length": 1})
    read = zoo.objects.equivalence

    def collect(digest: str) -> dict[str, Any]:
        if digest == other.digest:
            _remove(zoo, other)
        return read(digest)

    monkeypatch.setattr(zoo.objects, "equivalence", collect)
    assert [chain.grade for chain in zoo.chains("near", "C")] == ["A"]
