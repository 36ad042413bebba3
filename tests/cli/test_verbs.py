"""What each verb does and prints, for people and for programs."""

from __future__ import annotations

import re
from pathlib import Path

from tests.cli.conftest import Run, parsed
from tests.zoos import hashes


def test_a_zoo_is_made_and_left_as_it_is(blockzoo: Run, tmp_path: Path) -> None:
    assert parsed(blockzoo("init", "--json"))["created"] is True
    before = (tmp_path / "zoo" / "zoo.json").read_bytes()
    assert parsed(blockzoo("init", "--json"))["created"] is False
    assert (tmp_path / "zoo" / "zoo.json").read_bytes() == before
    assert parsed(blockzoo("ls", "--json")) == []


def test_several_sources_go_in_at_once(
    blockzoo: Run, sources: dict[str, Path], tmp_path: Path
) -> None:
    result = parsed(blockzoo("ingest", *sources.values(), "--json"))
    assert result["format"] == 1 and result["failed"] == []
    by_name = {row["name"]: row for row in result["ingested"]}
    assert set(by_name) == set(sources)
    assert 0 < by_name["tuned"]["new_bytes"] < by_name["base"]["new_bytes"]
    again = parsed(blockzoo("ingest", sources["base"], "--json"))["ingested"][0]
    assert again["already"] and again["new_bytes"] == 0
    assert blockzoo("ingest", sources["base"], "-q").stdout == "base\n"


def test_a_model_is_named_as_told(blockzoo: Run, sources: dict[str, Path]) -> None:
    blockzoo("ingest", sources["base"], "--name", "acme/support:v1")
    assert "acme/support" in blockzoo("ls", "-q").stdout


def test_adapters_go_in_after_their_bases(blockzoo: Run, shared: Path) -> None:
    family = shared / "family"
    done = blockzoo(
        "ingest", family / "trec-prefix", family / "code-lora-qv", family / "base", "-q"
    )
    assert done.stdout.splitlines()[0] == "base"
    kinds = {row["name"]: row["kind"] for row in parsed(blockzoo("ls", "--json"))}
    assert kinds == {"base": "model", "trec-prefix": "adapter", "code-lora-qv": "adapter"}


def test_models_are_listed_under_stable_keys(filled: Run) -> None:
    rows = parsed(filled("ls", "--json"))
    assert isinstance(rows, list)
    for row in rows:
        assert {"name", "digest", "kind", "bytes", "new_bytes"} <= set(row)
        assert re.fullmatch(r"[0-9a-f]{64}", row["digest"])
    assert filled("ls", "-q").stdout.split() == ["base", "other", "tuned"]


def test_the_zoo_may_stand_before_or_after_the_verb_or_outside(filled: Run, tmp_path: Path) -> None:
    (tmp_path / "zoo").rename(tmp_path / "elsewhere")
    expected = "base\nother\ntuned\n"
    assert filled("--zoo", "elsewhere", "ls", "-q").stdout == expected
    assert filled("ls", "-q", "--zoo", "elsewhere").stdout == expected
    assert filled("ls", "-q", BLOCKZOO_ZOO="elsewhere").stdout == expected
    assert filled("ls", "-q", "--zoo", "elsewhere", BLOCKZOO_ZOO="nowhere").stdout == expected
    filled("ls", "--zoo", "nowhere", code=10, BLOCKZOO_ZOO="elsewhere")


def test_files_come_out_as_they_went_in(
    filled: Run, sources: dict[str, Path], tmp_path: Path
) -> None:
    result = parsed(filled("export", "tuned", "out", "--json"))
    assert hashes(tmp_path / "out") == hashes(sources["tuned"])
    assert len(result["files"]) == len(hashes(sources["tuned"]))
    (tmp_path / "out" / "config.json").write_text("mine")
    assert "--overwrite" in filled("export", "tuned", "out", code=2).stderr
    assert (tmp_path / "out" / "config.json").read_text() == "mine"
    filled("export", "tuned", "out", "--overwrite")
    assert hashes(tmp_path / "out") == hashes(sources["tuned"])


def test_a_chain_is_shown_with_who_shares_it(filled: Run) -> None:
    shown = parsed(filled("show", "tuned", "--json"))
    hops = {row["hop"]: row for row in shown["chain"]}
    assert hops["layers.0.mlp"]["shared_with"] == ["base"]
    assert hops["layers.2.mlp"]["shared_with"] == []
    text = filled("show", "tuned").stdout
    assert "layers.0.attention" in text and shown["digest"] in text
    assert filled("show", shown["digest"][:8], "-q").stdout.strip() == shown["digest"]


def test_a_difference_is_told_tensor_by_tensor(filled: Run) -> None:
    rows = parsed(filled("diff", "base", "tuned", "--json"))["rows"]
    states = {row["tensor"]: row["state"] for row in rows}
    assert states["model.layers.0.mlp.up_proj.weight"] == "identical"
    assert states["model.layers.3.mlp.up_proj.weight"] == "changed"
    assert re.search(r"layers\.3\.mlp\.up_proj +changed", filled("diff", "base", "tuned").stdout)


def test_the_saving_is_told(filled: Run, sources: dict[str, Path]) -> None:
    stats = parsed(filled("stats", "--json"))
    size = sum(f.stat().st_size for s in sources.values() for f in s.iterdir())
    assert stats["format"] == 1 and stats["models"] == 3
    assert stats["logical_bytes"] == size
    assert stats["distinct_tensor_bytes"] < stats["stored_bytes"] < size
    assert abs(stats["saving"] - (1 - stats["stored_bytes"] / size)) < 1e-9
    assert "saving" in filled("stats").stdout


def test_names_move_and_come_back(filled: Run) -> None:
    digest = parsed(filled("show", "tuned", "--json"))["digest"]
    filled("tag", "tuned", "acme/tuned:v1")
    assert "acme/tuned" in filled("ls", "-q").stdout
    assert "would remove" in filled("rm", "tuned", "--dry-run").stdout
    assert "tuned" in filled("ls", "-q").stdout.split()
    filled("rm", "tuned", "-y")
    assert "tuned" not in filled("ls", "-q").stdout.split()
    filled("tag", digest[:12], "tuned")
    assert parsed(filled("show", "tuned", "--json"))["digest"] == digest
    actions = [row["action"] for row in parsed(filled("history", "tuned", "--json"))]
    assert actions == ["ingest", "remove", "tag"]


def test_a_wrong_name_keeps_the_others_from_being_removed(filled: Run) -> None:
    filled("rm", "base", "nobody", code=1)
    assert "base" in filled("ls", "-q").stdout.split()


def test_collecting_shows_then_deletes(filled: Run) -> None:
    filled("rm", "other")
    planned = parsed(filled("gc", "--older-than", "0", "--dry-run", "--json"))
    assert planned["objects"]["tensors"] > 0 and planned["freed_bytes"] == 0
    refused = filled("gc", "--older-than", "0", code=2)
    assert "--yes" in refused.stderr
    assert parsed(filled("gc", "-y", "--json"))["freed_bytes"] == 0  # all of it is young
    freed = parsed(filled("gc", "--older-than", "0s", "-y", "--json"))["freed_bytes"]
    assert freed == planned["bytes"] > 0
    assert filled("gc", "--older-than", "0").stdout == "nothing to free\n"
    filled("verify")
    filled("gc", "--older-than", "soon", code=2)


def test_damage_is_found_named_and_repaired(
    filled: Run, sources: dict[str, Path], tmp_path: Path
) -> None:
    assert "all sound" in filled("verify").stdout
    victim = max((tmp_path / "zoo" / "tensors").rglob("*.safetensors"), key=lambda p: p.name)
    victim.chmod(0o644)
    data = bytearray(victim.read_bytes())
    data[-1] ^= 1
    victim.write_bytes(data)
    done = filled("verify", "--json", code=12)
    [problem] = parsed(done)["problems"]
    assert problem["path"].endswith(victim.name) and problem["hurts"]
    assert "hint: `blockzoo repair SOURCE`" in done.stderr
    assert filled("verify", "-q", code=12).stdout.strip() == problem["digest"]
    name = problem["hurts"][0].partition(":")[0]
    assert parsed(filled("repair", sources[name], "--json"))["repaired"]
    filled("verify")


def test_json_and_quiet_exclude_each_other(filled: Run) -> None:
    assert "exclude" in filled("ls", "--json", "-q", code=2).stderr
