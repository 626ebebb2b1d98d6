"""Detokenising WikiText."""

from __future__ import annotations

import pytest

from backend.text.preparation import detokenise


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
