"""WikiText (spaces around punctuation, marks ` @-@ `) as ordinary prose, which models are trained
on. Perplexities on it cannot be compared with published ones; `DETOKENISED` is recorded with the
text."""

from __future__ import annotations

import re

DETOKENISED = "WikiText detokenised"
MARK = " @-@ "

_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
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
    """Whether the text has WikiText's joining marks."""
    return MARK in text


def detokenise(text: str) -> str:
    """The text as ordinary prose; titles, `<unk>` and line breaks are kept."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text
