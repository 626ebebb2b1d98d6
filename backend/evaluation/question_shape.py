"""The shape of the questions of `backend.evaluation.endings`, without importing torch."""

from __future__ import annotations

PASSAGE, ENDING, CHOICES = 48, 12, 4  # tokens, tokens, endings of a question
PART = PASSAGE + ENDING  # tokens of the text that each question takes
MIN_CONTEXT = CHOICES * PART + 1  # of a window that holds an ending for every choice


def parts_of(context: int) -> int:
    """How many questions a window gives, its first token aside, which may begin the text."""
    return (context - 1) // PART


def question_count(windows: int, context: int, limit: int = 0) -> int:
    """How many questions a text gives, at most `limit` unless that is 0."""
    there = windows * parts_of(context)
    return min(there, limit) if limit else there
