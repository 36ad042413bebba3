"""The one table: as text, as HTML, as JSON, as rows."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from blockzoo.explore import Column, Table

_VOID = {"br", "hr", "img", "input", "link", "meta"}
_TABLE = Table(
    "models",
    (
        Column("name"),
        Column("digest", kind="digest"),
        Column("bytes", "size", "bytes"),
        Column("shared_with", "shared with"),
    ),
    (
        {"name": "acme/sql", "digest": "ab" * 32, "bytes": 13_800_000, "shared_with": ["base"]},
        {"name": "<b>&\"'</b>", "digest": "cd" * 32, "bytes": 512, "extra": 7},
    ),
    note="2 models",
)


class Balanced(HTMLParser):
    """Fails where tags are left open or close another's; keeps the attributes seen."""

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(markup)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def assert_works_offline(markup: str) -> None:
    """Well-formed, with no script and nothing that a browser would fetch."""
    page = Balanced(markup)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not {name for name, _ in page.attributes} & {"src", "href", "onclick", "srcset"}
    assert "url(" not in markup and "@import" not in markup


def test_text_lines_columns_up_and_says_the_total() -> None:
    lines = repr(_TABLE).splitlines()
    assert lines[0] == "models"
    assert lines[-1] == "2 models"
    header, rule, first, second = lines[1:5]
    assert set(rule) == {"─", " "}
    assert first.index("abababababab") == header.index("digest")
    end = header.index("size") + len("size")
    assert first[:end].endswith("13.8 MB") and second[:end].endswith("512 B")
    assert first.endswith("base")
    assert not any(line.endswith(" ") for line in lines)


def test_text_of_an_empty_table_says_so() -> None:
    assert "(none)" in repr(Table("models", (Column("name"),)))


def test_a_prompt_shows_the_first_rows_and_to_text_shows_all() -> None:
    table = Table("", (Column("n", kind="int"),), [{"n": n} for n in range(200)])
    assert "… 140 more" in repr(table)
    assert len(table.to_text().splitlines()) == 202


def test_html_escapes_and_works_offline() -> None:
    markup = _TABLE._repr_html_()
    assert_works_offline(markup)
    assert "<b>&" not in markup and "&lt;b&gt;&amp;&quot;&#x27;&lt;/b&gt;" in markup
    assert "ab" * 32 in markup, "the whole digest is there to copy"
    assert "prefers-color-scheme:dark" in markup and "data-jp-theme-light=false" in markup


def test_a_long_html_table_is_cut_and_says_so() -> None:
    markup = Table("", (Column("n"),), [{"n": n} for n in range(700)])._repr_html_()
    assert markup.count("<tr>") == 501
    assert "… 200 more" in markup


def test_json_has_every_column_in_every_row_unformatted() -> None:
    rows = json.loads(json.dumps(_TABLE.to_json()))
    assert rows[0] == {
        "name": "acme/sql",
        "digest": "ab" * 32,
        "bytes": 13_800_000,
        "shared_with": ["base"],
    }
    assert rows[1]["shared_with"] is None
    assert rows[1]["extra"] == 7


def test_rows_columns_and_slices() -> None:
    assert len(_TABLE) == 2
    assert [row["bytes"] for row in _TABLE] == [13_800_000, 512]
    assert _TABLE[1]["bytes"] == 512
    assert _TABLE["bytes"] == [13_800_000, 512]
    assert _TABLE["extra"] == [None, 7]
    assert isinstance(_TABLE[:1], Table) and len(_TABLE[:1]) == 1
    with pytest.raises(KeyError):
        _TABLE["no such column"]


def test_numbers_go_right_and_text_left_unless_told() -> None:
    kinds = {"text": False, "digest": False, "time": False, "bytes": True, "ratio": True}
    assert {kind: Column("x", kind=kind).right for kind in kinds} == kinds  # type: ignore[arg-type]
    assert Column("x", align="right").right
    assert re.search(r'<th class="bz-right">x<', Table("", (Column("x", align="right"),)).to_html())
