"""Text that is safe to print, and readable durations and byte counts.

Text from users and models loses the characters that control a terminal or reorder the displayed
text. It is cleaned on input and again on output.
"""

import re

SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # ECMA-48 control sequences, such as colors
CONTROL = re.compile(  # C0 and C1, line separators, bidirectional overrides, lone surrogates
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Remove control characters other than line feeds and tabs. A carriage return becomes a line
    feed."""
    lines = SEQUENCES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return CONTROL.sub("", lines)


def one_line(text: str) -> str:
    """Remove control characters, line feeds and tabs, as for a name."""
    return re.sub(r"[\n\t]+", " ", printable(text)).strip()


def readable_seconds(seconds: float) -> str:
    """Format a duration in its two largest units: 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h. Spaces do
    not break."""
    remaining_s = max(0, round(seconds))
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, remaining_s = divmod(remaining_s, length)
        if amount or (unit == "s" and not parts):
            parts.append(f"{amount}\u00a0{unit}")
        elif parts:
            break
    return "\u00a0".join(parts[:2])


def readable_bytes(count: float) -> str:
    """Format a byte count in decimal units: 538 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
