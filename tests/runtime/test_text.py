"""Text from tokens as they come: whole characters only, nothing of a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from blockzoo_runtime.engine.text import TextStream


def decode(ids: Sequence[int]) -> str:
    """A tokenizer whose tokens are bytes."""
    return bytes(ids).decode(errors="replace")


def feed(text: str, stops: Sequence[str] = ()) -> tuple[list[str], TextStream]:
    stream = TextStream(decode, stops)
    given = []
    for byte in text.encode():
        given.append(stream.push(byte))
        if stream.stopped:
            break
    given.append(stream.finish())
    return given, stream


@pytest.mark.parametrize("text", ["plain", "größer als 3 €", "日本語", "🙂🙃", "a\nb\n\nc", ""])
def test_pieces_make_up_the_text_and_are_whole_characters(text: str) -> None:
    given, stream = feed(text)
    assert "".join(given) == text == stream.text
    assert "�" not in "".join(given)


def test_an_unfinished_character_comes_at_the_end() -> None:
    stream = TextStream(decode)
    assert stream.push("€".encode()[0]) == ""
    assert stream.finish() == "�"


def test_text_before_the_stop_string_is_given_and_no_more() -> None:
    given, stream = feed("one two STOP three", ["STOP"])
    assert "".join(given) == "one two " == stream.text
    assert stream.stopped


def test_a_beginning_of_a_stop_string_is_held_back_and_released() -> None:
    stream = TextStream(decode, ["\n\nQ"])
    pieces = [stream.push(byte) for byte in b"a\n\nb"]
    assert pieces == ["a", "", "", "\n\nb"]


def test_what_was_held_back_comes_at_the_end() -> None:
    given, stream = feed("almost ST", ["STOP"])
    assert "".join(given) == "almost ST"
    assert not stream.stopped


def test_the_earliest_of_several_stop_strings_counts() -> None:
    given, _ = feed("abcdef", ["ef", "cd", "bcde"])
    assert "".join(given) in ("ab", "a")
    assert "".join(given) == "ab"  # "cd" is there before "bcde" is


def test_without_a_tokenizer_there_is_no_text() -> None:
    stream = TextStream(None, [])
    assert stream.push(5) == "" and stream.finish() == "" and stream.text == ""


def test_a_real_tokenizer_gives_the_text_it_decodes_at_once(tokenizer: Any) -> None:
    text = "  def f(x):\n\treturn 'größe 日本' # 🙂\n\n\n  The prince  said: “No.”"
    ids = tokenizer(text)["input_ids"]

    def plain(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=True))

    stream = TextStream(plain)
    given = [stream.push(token) for token in ids]
    assert "".join([*given, stream.finish()]) == plain(ids)
