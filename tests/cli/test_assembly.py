"""``--assembly`` of ``blockzoo run`` and ``bench``."""

from __future__ import annotations

from pathlib import Path

from blockzoo.zoo import Zoo
from tests.cli.conftest import Run, parsed
from tests.planted import make_base, perturb, variant, write_text


def test_a_certified_chain_serves_where_it_is_allowed(blockzoo: Run, tmp_path: Path) -> None:
    zoo = Zoo(tmp_path / "zoo")
    base = make_base(tmp_path / "base")
    zoo.ingest(base)
    zoo.ingest(variant(base, tmp_path / "near", lambda t: perturb(t, "model.layers.", 0.002)))
    text = write_text(tmp_path / "text.txt", 1)
    record = zoo.certify("near", "layers.*=base", [text])
    load = tmp_path / "load.jsonl"
    lines = [f'{{"model": "{name}", "prompt": "w1 w2", "max_new_tokens": 4, "at": {at}}}'
             for at, name in enumerate(["base", "near"])]  # fmt: skip
    load.write_text("\n".join(lines))
    bench = ("bench", "--workload", load, "--json", "--assembly", "at_most:A")
    told = parsed(blockzoo(*bench, "--any-text"))
    assert told["engine"]["chains"]["near"] == {f"A:{record.digest[:12]}": 1}
    assert told["engine"]["certified_kl"] > 0

    warned = blockzoo(*bench)
    assert parsed(warned)["engine"]["chains"] == {"base": {"exact": 1}, "near": {"exact": 1}}
    assert "near is served exactly" in warned.stderr and "--own" in warned.stderr

    run = ("run", "near", "-p", "w1 w2", "--max-new-tokens", 2, "--json", "--any-text")
    assert parsed(blockzoo(*run))["assembly"] == "exact"
    assert parsed(blockzoo(*run, "--assembly", "at_most:A"))["assembly"] == "exact"  # loaded alike
    assert "at_most:C" in blockzoo(*run, "--assembly", "at_most:D", code=2).stderr
