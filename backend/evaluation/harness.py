"""Whether lm-evaluation-harness is installed. Does not import it, nor torch."""

from __future__ import annotations

from importlib.util import find_spec

from backend.errors import ConfigError

INSTALL = "In the folder of Slimscope: pip install -e '.[tasks]'."


def require_harness(field: str = "tasks") -> None:
    """Raise an error if the harness is not installed; does not import it.

    Raises:
        ConfigError: names the extra.
    """
    if find_spec("lm_eval") is None:
        raise ConfigError(
            "Zero-shot tasks cannot be measured here.",
            "lm-evaluation-harness is not installed.",
            f"{INSTALL} Or name no task.",
            field,
        )
