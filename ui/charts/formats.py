"""Colors of layer formats on one ordered scale: the less is left of a layer, the brighter. A level
is a place on `SCALE`; that of a pattern and a width together is the sum of their levels."""

import math

from plotly.colors import sample_colorscale

from backend.sensitivity.profile import Format

STEPS = 40
SCALE = [
    str(x)
    for x in sample_colorscale("Plasma", [0.056 + 0.936 * n / STEPS for n in range(STEPS + 1)])
]
FULL, EMPTY = 1.2, -0.1  # what is left of a layer at the two ends of the scale, in units of 2 bits


def level_of(form: Format) -> float:
    """The level of a pattern or a width alone; 0 for 16 bits without a pattern."""
    kept = 1 - form.sparsity
    left = math.log2(form.width.bits) / 2 - 0.5 if form.width else (kept - 0.2) / 0.5
    return (FULL - left) * STEPS / (FULL - EMPTY) if form.width or form.pattern else 0.0


def level_beside(form: Format) -> float:
    """The level that the pattern of a format adds to that of a width."""
    return -math.log2(1 - form.sparsity) / 2 * STEPS / (FULL - EMPTY)


def format_color(form: Format) -> str:
    """The color of a format; that of lines for 16 bits without a pattern."""
    if not form.width and not form.pattern:
        return "var(--line)"
    both = form.width and form.pattern
    level = level_of(Format(form.width) if both else form) + (level_beside(form) if both else 0.0)
    return SCALE[round(max(0, min(STEPS, level)))]
