"""Check for lm-evaluation-harness without importing it or torch."""

from __future__ import annotations

from importlib.util import find_spec

from backend.errors import ConfigError

INSTALL = "In the Slimscope folder: pip install -e '.[tasks]'."


def require_harness(field: str = "tasks") -> None:
    """Check that the harness is installed, without importing it. Raises ConfigError: it is not
    installed; names the pip extra."""
    if find_spec("lm_eval") is None:
        what, why = "Zero-shot tasks are not available.", "lm-evaluation-harness is not installed."
        raise ConfigError(what, why, f"{INSTALL} Or leave the tasks empty.", field)
