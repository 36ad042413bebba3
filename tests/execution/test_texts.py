"""Documents from files, and as many tokens of them as are wanted."""

from __future__ import annotations

from pathlib import Path

from blockzoo.execution.texts import Text, read_text, split


def words(document: str, verbose: bool = True) -> dict[str, list[int]]:
    return {"input_ids": list(range(len(document.split())))}


def text(*lengths: int) -> Text:
    return Text("t", "0" * 64, tuple("w " * length for length in lengths), Path("t.txt"))


def test_documents_stand_between_blank_lines_or_one_a_line() -> None:
    assert split("a\nb\n\nc\n \t\n\n d \n") == ("a\nb", "c", "d")
    assert split("a\nb\n\nc") == ("a\nb", "c")
    assert split("a\r\nb\r\n\r\nc") == ("a\nb", "c")
    assert split("a\nb\nc\n") == ("a", "b", "c")
    assert split(" \n\n \n") == ()


def test_the_domain_is_the_name_without_its_endings(tmp_path: Path) -> None:
    for name in ("sql.evaluation.txt", "sql.calibration.txt", "sql.txt"):
        (tmp_path / name).write_text("a\n")
        assert read_text(tmp_path / name).domain == "sql"


def test_documents_are_cut_short_before_any_is_left_out() -> None:
    assert [len(ids) for ids in text(10, 300, 500).tokens(words, 1000)] == [10, 300, 500]
    cut = [len(ids) for ids in text(10, 300, 500).tokens(words, 410)]
    assert cut == [10, 200, 200]
    many = [len(ids) for ids in text(*[400] * 50).tokens(words, 640)]
    assert many == [64] * 10
    assert text(1, 0, 5).tokens(words, 100) == [[0, 1, 2, 3, 4]]  # one token foretells nothing
