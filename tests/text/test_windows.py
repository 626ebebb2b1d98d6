"""Cutting windows out of documents, with a tokenizer whose tokens are plain to see."""

from random import Random
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.text import slices as room
from backend.text.slices import cut_windows, encoded, shuffled

END, BEGIN = 0, 1


class Letters:
    """One token a character; `begins` and `ends` say which special tokens there are."""

    def __init__(self, begins: bool = False, ends: bool = True) -> None:
        self.bos_token_id = BEGIN if begins else None
        self.eos_token_id = END if ends else None

    def __call__(self, text: str, add_special_tokens: bool = True, **_: object) -> SimpleNamespace:
        begin = [BEGIN] if self.bos_token_id and add_special_tokens else []
        return SimpleNamespace(input_ids=begin + [ord(letter) for letter in text])


def cut(texts: list[str], context: int, offset: int = 0, **kind: bool) -> list[list[int]]:
    return list(cut_windows(texts, Letters(**kind), context, lambda slack: min(offset, slack)))


def ids(text: str) -> list[int]:
    return [END if letter == "." else BEGIN if letter == "^" else ord(letter) for letter in text]


@pytest.mark.parametrize(
    ("texts", "context", "windows"),
    [
        (["abcdefgh"], 3, ["abc", "def"]), (["ab", "cd", "ef"], 4, ["ab.c"]),
        (["ab", "cdefgh", "ijkl"], 4, ["ab.c", "defg", "ijkl"]), (["abc"], 4, []), ([], 4, []),
    ],
)  # fmt: skip
def test_rows_and_windows(texts: list[str], context: int, windows: list[str]) -> None:
    assert cut(texts, context) == [ids(window) for window in windows]


@given(st.lists(st.text("abcdef", max_size=30), max_size=12), st.integers(2, 9), st.integers(0, 9))
def test_windows_are_text_in_order_and_never_overlap(
    texts: list[str], context: int, offset: int
) -> None:
    windows = cut(texts, context, offset)
    stream, position = ids(".".join(texts)), 0
    for window in windows:
        assert len(window) == context
        while stream[position : position + context] != window:
            position += 1
            assert position < len(stream)
        position += context


def test_a_stream_is_shuffled_as_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "SHUFFLE_BUFFER", 10)
    endless = iter(shuffled(iter(int, 1), Random(0)))  # zeros without end
    assert [next(endless) for _ in range(25)] == [0] * 25
    order = list(shuffled(range(20), Random(0)))
    assert sorted(order[:10]) == list(range(10)) and order[:10] != list(range(10))


def test_a_very_long_document_is_encoded_whole() -> None:
    text = "a" * 999_990 + "\n\n" + "b" * 1_500_000
    (found,) = encoded([text], Letters())
    assert found == ids(text)
