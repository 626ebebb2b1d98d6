"""What is printed: byte counts, and text of people and models without the characters that control a
terminal, or that show text in another order than it has. Such text is cleaned where it comes in,
and again where it is printed."""

import re

SEQUENCES = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]")  # ECMA-48 control sequences, as of colors
CONTROL = re.compile(  # C0 and C1, line separators, bidirectional overrides, lone surrogates
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


def printable(text: str) -> str:
    """The text without control characters; of those, line feeds and tabs are kept. A carriage
    return ends a line."""
    lines = SEQUENCES.sub("", text).replace("\r\n", "\n").replace("\r", "\n")
    return CONTROL.sub("", lines)


def one_line(text: str) -> str:
    """The text without control characters, line feeds and tabs, as a name is."""
    return re.sub(r"[\n\t]+", " ", printable(text)).strip()


def readable_seconds(seconds: float) -> str:
    """The two largest units: 42 s, 3 min 20 s, 2 h 5 min, 3 d 4 h; never broken between lines."""
    left = max(0, round(seconds))
    if 0 < seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    parts: list[str] = []
    for unit, length in (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1)):
        amount, left = divmod(left, length)
        if amount or (unit == "s" and not parts):
            parts.append(f"{amount}\u00a0{unit}")
        elif parts:
            break
    return "\u00a0".join(parts[:2])


def readable_bytes(count: float) -> str:
    """A byte count in decimal units: 538 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
