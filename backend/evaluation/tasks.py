"""What tasks need, without importing torch or lm-evaluation-harness: the shape of the questions of
`backend.evaluation.zero_shot`, and whether the harness is installed."""

from importlib.util import find_spec

from backend.errors import ConfigError

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


INSTALL = "In the Slimscope folder: pip install -e '.[tasks]'."


def require_harness() -> None:
    """Check that the harness is installed, without importing it. Raises ConfigError: it is not
    installed; names the pip extra."""
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "Zero-shot tasks are not available.",
            "lm-evaluation-harness is not installed.",
            f"{INSTALL} Or leave the tasks empty.",
            "tasks",
        )
