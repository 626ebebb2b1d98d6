"""The shape of the questions of `backend.evaluation.endings`, without importing torch."""

from __future__ import annotations

PASSAGE, ENDING, CHOICES = 48, 12, 4  # tokens, tokens, endings of a question
PART = PASSAGE + ENDING  # tokens of the text that each question takes


def question_count(windows: int, context: int, limit: int = 0) -> int:
    """How many questions windows of `context` tokens give, at most `limit` unless that is 0."""
    there = windows * (context // PART)
    return min(there, limit) if limit else there
