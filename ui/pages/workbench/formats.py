"""Formats of layers for the browser: values of the knobs, and the parts of formats."""

from collections.abc import Iterable
from typing import Any

from backend.models.families.stored import LinearShape
from backend.pruning.pattern import Pattern
from backend.quantization.config import MAX_BITS, MIN_BITS, IntegerFormat
from backend.sensitivity.profile import DENSE_BITS, Format
from ui.charts.formats import level_beside, level_of
from ui.format import NBSP

WIDTHS, GROUPS = (2, 3, 4, 5, 6, 8), (32, 64, 128)
PATTERNS, MAX_PERCENT = ("1:4", "2:4", "4:8"), 90
BITS = range(MIN_BITS, MAX_BITS + 1)
OFFERED = (  # values of the controls; other formats combine a pattern and a width
    *map(Format.parse, PATTERNS),
    *(Format.parse(f"{percent}%") for percent in range(1, MAX_PERCENT + 1)),
    *(Format(IntegerFormat(bits, group)) for group in (0, *GROUPS) for bits in BITS),
)
NO_PATTERN, NO_WIDTH = Pattern(0, 0, 0.0), IntegerFormat(DENSE_BITS)


def names_of(form: Format) -> tuple[str, str]:
    """Names of the pattern and the width of a format; "" for none."""
    return str(form.pattern or ""), str(form.width or "")


def format_parts(
    formats: Iterable[Format], layers: Iterable[LinearShape]
) -> dict[str, dict[str, Any]]:
    """Patterns and widths by name. `extra`: bits of masks, indices and scales that a weight takes
    in rows of one input; `misfits`: numbers of inputs of these layers that cannot be stored so;
    `level`: place on the scale of colors, `beside` what a pattern adds to that of a width."""
    columns, parts = {x.columns for x in layers}, dict[str, dict[str, Any]]()
    for form in formats:
        for part in (Format(pattern=form.pattern), Format(form.width)):
            pattern, width = part.pattern or NO_PATTERN, part.width or NO_WIDTH
            short = Format(part.width and IntegerFormat(width.bits), part.pattern)
            parts[str(part)] = {
                "label": part.label.replace("%", f"{NBSP}%"),
                "short": short.label.replace("%", f"{NBSP}%"),
                "keep": pattern.keep,
                "of": pattern.group,
                "drop": pattern.drop,
                "bits": width.bits,
                "group": width.group,
                "extra": part.bits_per_weight(1) - (1 - pattern.drop) * width.bits,
                "level": level_of(part),
                "beside": level_beside(part),
                "misfits": [n for n in columns if not part.fits(n)],
            }
    return parts
