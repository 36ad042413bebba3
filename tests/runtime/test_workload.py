"""Workloads from files and traces: what is read is kept, what is made up follows its seed."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from blockzoo_runtime.traces import read_trace
from blockzoo_runtime.workload import Assumptions, Workload, read_workload, write_workload

from blockzoo.errors import UsageError

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.0000000,879,55
"""


def written(tmp_path: Path, text: str, name: str = "file") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def lines(*objects: object) -> str:
    return "".join(json.dumps(o) + "\n" for o in objects)


def lengths(workload: Workload) -> list[tuple[int, int | None]]:
    return [(len(a.prompt), a.max_new_tokens) for a in workload.arrivals]


def test_a_file_is_read_as_it_is_and_sorted_by_time(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "Hi"}]
    text = lines(
        {"model": "b", "prompt_tokens": [1, 2, 3], "at": 2.5, "max_new_tokens": 7},
        {"model": "a", "prompt": "Once"},
        {"model": "a", "prompt": chat, "at": 1},
    )
    workload = read_workload(written(tmp_path, text.replace("\n", "\n\n")))
    assert [a.prompt for a in workload.arrivals] == ["Once", chat, (1, 2, 3)]
    assert [a.at for a in workload.arrivals] == [0, 1, 2.5] and workload.duration == 2.5
    assert workload.arrivals[2].max_new_tokens == 7 and workload.arrivals[0].max_new_tokens is None
    assert workload.models == ("a", "b") and workload.made_up == ()
    write_workload(tmp_path / "again", workload)
    assert read_workload(tmp_path / "again").arrivals == workload.arrivals
    assert workload.faster(2).arrivals[2].at == 1.25


def test_lengths_become_tokens_of_the_vocabulary_by_the_seed(tmp_path: Path) -> None:
    path = written(tmp_path, lines(*[{"prompt_length": 50}] * 40))
    assumed = Assumptions(["a", "b", "c"], vocabulary=9, seed=3)
    workload = read_workload(path, assumed)
    tokens = [t for a in workload.arrivals for t in a.prompt]
    assert set(tokens) == set(range(9)) and len(tokens) == 2000
    assert len({a.prompt for a in workload.arrivals}) == 40
    assert read_workload(path, assumed) == workload
    assert read_workload(path, Assumptions(["a", "b", "c"], vocabulary=9)) != workload
    assert workload.made_up == ("which tenant a request is for", "token ids")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"model": "a", "prompt": "x", "prompt_length": 3}', "exactly one"),
        ('{"model": "a"}', "exactly one"),
        ('{"model": "a", "prompt_length": 0}', "prompt_length is 0"),
        ('{"model": "a", "prompt_length": true}', "prompt_length is True"),
        ('{"model": "a", "prompt": "x", "max_new_tokens": -1}', "max_new_tokens is -1"),
        ('{"model": "a", "prompt": 7}', "neither text nor chat"),
        ('{"model": "a", "prompt_tokens": ["x"]}', "invalid literal"),
        ('{"model": 3, "prompt": "x"}', "not a name"),
        ('{"prompt": "x"}', "names no model"),
        ('{"model": "a", "prompt": "x", "temprature": 1}', "temprature"),
        ('{"model": "a", "prompt": "x"', "line 2"),
        ("[1]", "no JSON object"),
    ],
)
def test_a_bad_line_is_named(line: str, told: str, tmp_path: Path) -> None:
    path = written(tmp_path, '{"model": "a", "prompt": "x"}\n' + line)
    with pytest.raises(UsageError, match=told) as caught:
        read_workload(path)
    assert "line 2" in caught.value.message


@pytest.mark.parametrize("at", ["-1", "NaN", "Infinity"])
def test_times_that_never_come_are_refused(at: str, tmp_path: Path) -> None:
    path = written(tmp_path, f'{{"model": "a", "prompt": "x", "at": {at}}}')
    with pytest.raises(UsageError, match="before 0 or never"):
        read_workload(path)


def test_no_requests_and_no_file_are_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no requests"):
        read_workload(written(tmp_path, "\n"))
    with pytest.raises(UsageError, match="cannot read"):
        read_workload(tmp_path / "absent")
    with pytest.raises(UsageError, match="cannot read"):
        read_trace(tmp_path / "absent", Assumptions(["a"]))


def test_an_azure_trace_keeps_times_and_lengths(tmp_path: Path) -> None:
    workload = read_trace(written(tmp_path, AZURE), Assumptions(["a", "b"], vocabulary=7))
    assert [round(a.at, 3) for a in workload.arrivals] == [0, 1.319, 4.315]
    assert lengths(workload) == [(374, 44), (879, 55), (396, 109)]
    assert max(t for a in workload.arrivals for t in a.prompt) == 6
    assert set(workload.models) <= {"a", "b"} and "token ids" in workload.made_up


def test_lengths_are_scaled_and_cut(tmp_path: Path) -> None:
    assumed = Assumptions(["a"], scale=0.5, longest=100, limit=2)
    workload = read_trace(written(tmp_path, AZURE), assumed)
    assert lengths(workload) == [(78, 22), (50, 50)]
    assert "scaled" in workload.made_up[-1]


def test_a_mooncake_trace_shares_prefixes_as_it_did(tmp_path: Path) -> None:
    rows = [
        {"timestamp": 0, "input_length": 1500, "output_length": 5, "hash_ids": [0, 1, 2]},
        {"timestamp": 3000, "input_length": 1600, "output_length": 6, "hash_ids": [0, 3, 4, 5]},
        {"timestamp": 5000, "input_length": 2040, "output_length": 7, "hash_ids": [0, 1, 2, 6]},
    ]
    path = written(tmp_path, lines(*rows))
    whole = read_trace(path, Assumptions(["a", "b", "c"], vocabulary=5000))
    first, second, third = (a.prompt for a in whole.arrivals)
    assert lengths(whole) == [(1500, 5), (1600, 6), (2040, 7)]
    assert [a.at for a in whole.arrivals] == [0, 3, 5]
    assert (
        first == third[:1500] and first[:512] == second[:512] and first[512:515] != second[512:515]
    )
    small = read_trace(path, Assumptions(["a", "b", "c"], vocabulary=5000, scale=1 / 64))
    first, second, third = (a.prompt for a in small.arrivals)
    assert len(first) == 23 and first == third[:23]
    assert first[:8] == second[:8] and first[8:11] != second[8:11]


def test_what_goes_on_from_a_text_goes_to_its_tenant(tmp_path: Path) -> None:
    rows = [
        {"timestamp": t, "input_length": 1024, "output_length": 1, "hash_ids": [0, 1 + t % 50]}
        for t in range(200)
    ]
    workload = read_trace(written(tmp_path, lines(*rows)), Assumptions(["a", "b", "c"]))
    for key in range(50):
        assert len({a.model for a in workload.arrivals[key::50]}) == 1
    assert len(workload.models) == 3


def test_tenants_follow_zipf(tmp_path: Path) -> None:
    row = "2023-11-16 18:15:46.6805900,1,1\n"
    path = written(tmp_path, AZURE.splitlines()[0] + "\n" + row * 6000)
    counts = Counter(a.model for a in read_trace(path, Assumptions(["a", "b", "c"])).arrivals)
    assert counts["a"] / counts["b"] == pytest.approx(2, rel=0.15)
    assert counts["a"] / counts["c"] == pytest.approx(3, rel=0.15)
    alike = read_trace(path, Assumptions(["a", "b", "c"], zipf=0))
    assert Counter(a.model for a in alike.arrivals)["c"] == pytest.approx(2000, rel=0.1)


@pytest.mark.parametrize("text", ["a,b\n1,2\n", '{"x": 1}\n', AZURE.replace("374", "many")])
def test_what_is_no_trace_is_refused(text: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no trace"):
        read_trace(written(tmp_path, text), Assumptions(["a"]))


def test_a_trace_needs_tenants(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="names no models"):
        read_trace(written(tmp_path, AZURE), Assumptions())


@pytest.mark.parametrize(
    "values", [{"vocabulary": 0}, {"scale": 0}, {"scale": -1}, {"zipf": -1}, {"longest": 1}]
)
def test_impossible_assumptions_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Assumptions(**values)  # type: ignore[arg-type]


def test_the_public_traces_are_read(shared: Path) -> None:
    assumed = Assumptions(["a", "b"], scale=0.05, longest=200, limit=300)
    for path in sorted((shared / "traces").iterdir()):
        workload = read_trace(path, assumed)
        assert len(workload.arrivals) == 300 and set(workload.models) == {"a", "b"}
        assert all(p + (n or 0) <= 200 for p, n in lengths(workload))
