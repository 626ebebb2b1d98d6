"""Turns WikiText's tokenised lines into ordinary prose.

WikiText separates all words and signs by spaces and marks joined ones (` @-@ `, ` @,@ `, ` @.@ `).
Models were trained on ordinary prose, so the marks and the spaces they do not expect are removed.
Perplexities on detokenised text cannot be compared with published ones; the name below goes into
the record of every slice made this way.
"""

from __future__ import annotations

import re

DETOKENISED = "WikiText detokenised"
MARK = " @-@ "

_RULES = tuple(
    (re.compile(pattern), put)
    for pattern, put in (
        (r" @([-,.])@ ", r"\1"),
        (r'" ([^"\n]*?) "', r'"\1"'),
        (r"([(\[]) ", r"\1"),
        (r" ([)\],.;:!?%])", r"\1"),
        (r" '(?=\w)|(?<=s) '(?= )", "'"),
        (r"([$£€]) (?=\d)", r"\1"),
        (r"(?m)^ | $", ""),
    )
)


def is_tokenised(text: str) -> bool:
    """Whether the text carries WikiText's mark."""
    return MARK in text


def detokenise(text: str) -> str:
    """The text as ordinary prose; titles, `<unk>` and line ends stay."""
    for pattern, put in _RULES:
        text = pattern.sub(put, text)
    return text
