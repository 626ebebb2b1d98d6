"""A text as the tokens it was written in: tinted by the head that guessed each, guesses in vain
outlined, the first token that differs from another text marked."""

from __future__ import annotations

from collections.abc import Collection

from backend.methods.amphista.config import LOOKED_UP
from jobs.generate.transcript import Transcript, TranscriptStep
from ui.format import esc

MOST = 512  # tokens that are tinted; the rest is plain
HEADS = 6  # tints there are; further heads share the last
LOOKED = "looked"  # the tint of what was looked up
WHO = {0: "the base chose it", LOOKED_UP: "it was looked up in the text"}


def token_strip(found: Transcript, differs: int | None = None) -> str:
    """HTML: the tokens one after the other.

    Args:
        differs: the character at which the text parts from another one; None: nowhere.
    """
    parts, place, shown = [], 0, 0
    for number, each in enumerate(found.passes):
        for text, head in each.tokens:
            marked = differs is not None and place <= differs < place + len(text)
            place += len(text)
            parts.append(_token(text, head, number, each, marked) if shown < MOST else esc(text))
            shown += 1
        parts.append(_rejected(each) if shown < MOST else "")
    return f'<p class="strip">{"".join(parts)}{esc(found.rest)}</p>'


def _token(text: str, head: int, number: int, of: TranscriptStep, marked: bool) -> str:
    if not text:
        return ""
    who = WHO.get(head, f"head {head} guessed it")
    tint = f' class="head-{LOOKED if head == LOOKED_UP else min(head, HEADS)}"' if head else ""
    tag = "mark" if marked else "span"
    return f'<{tag}{tint} title="{who}, pass {number}, {of.ms:.1f} ms">{esc(text)}</{tag}>'


def _rejected(of: TranscriptStep) -> str:
    """The first guess of a pass that was wrong; those behind it were in vain with it."""
    text = next(iter(of.rejected), "")
    if not text.strip():
        return ""
    return f'<s title="guessed in vain" aria-hidden="true">{esc(text)}</s>'


def legend(who: Collection[int]) -> str:
    """HTML: what the tints of those `who` guessed mean."""
    heads = range(1, min(max(who), HEADS) + 1)
    tints = "".join(f'<span class="head-{k}">head {k}</span> ' for k in heads)
    if LOOKED_UP in who:
        tints += f'<span class="head-{LOOKED}">looked up</span> '
    return f'<p class="strip key quiet">{tints}<s>guessed in vain</s> no tint: the base</p>'
