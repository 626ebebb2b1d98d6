"""Detokenising WikiText."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.text.files import detokenise, is_tokenised


@pytest.mark.parametrize(
    ("tokenised", "plain"),
    [
        (" A guest @-@ starring role , 1 @,@ 500 m . \n", "A guest-starring role, 1,500 m.\n"),
        (" 0 @.@ 7 kg ( 1 @.@ 5 lb ) ; more : yes ! ", "0.7 kg (1.5 lb); more: yes!"),
        (' as " Craig " in " Teddy \'s Story " of', 'as "Craig" in "Teddy\'s Story" of'),
        (" they don 't and I 've , the Knights ' coach", "they don't and I've, the Knights' coach"),
        (" costs $ 5 or £ 3 , [ sic ] 50 % ", "costs $5 or £3, [sic] 50%"),
        (" Robert <unk> 's son \n", "Robert <unk>'s son\n"),
    ],
)
def test_lines_of_wikitext(tokenised: str, plain: str) -> None:
    assert detokenise(tokenised) == plain


def test_only_the_mark_tells_wikitext() -> None:
    assert is_tokenised("long @-@ term")
    assert not is_tokenised("Ordinary prose, with ( odd ) spaces .")


@given(st.lists(st.sampled_from([*"abc019", "word", "don", "Long"]), min_size=1, max_size=20))
def test_words_without_signs_are_left_alone(words: list[str]) -> None:
    assert detokenise(" ".join(words)) == " ".join(words)
