"""Sizes of the questions in `backend.evaluation.zero_shot`, and a check for lm-evaluation-harness.
Does not import torch or the harness."""

from importlib.util import find_spec

from backend.errors import ConfigError

PASSAGE_TOKENS, ENDING_TOKENS, CHOICES = 48, 12, 4
QUESTION_TOKENS = PASSAGE_TOKENS + ENDING_TOKENS  # tokens of the text per question
MIN_CONTEXT = CHOICES * QUESTION_TOKENS + 1  # length of a window with an ending for every choice


def questions_per_window(context: int) -> int:
    """Number of questions per window of `context` tokens. The first token is not used, because it
    may be the beginning-of-text token."""
    return (context - 1) // QUESTION_TOKENS


def question_count(windows: int, context: int, limit: int = 0) -> int:
    """Number of questions in a text, at most `limit` unless that is 0."""
    count = windows * questions_per_window(context)
    return min(count, limit) if limit else count


INSTALL = "In the Slimscope folder, run: pip install -e '.[tasks]'."


def require_harness() -> None:
    """Check that the harness is installed, without importing it.

    Raises:
        ConfigError: it is not installed; the error shows the pip command.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "Zero-shot tasks are not available.",
            "lm-evaluation-harness is not installed.",
            f"{INSTALL} Or choose no tasks.",
            "tasks",
        )
