"""Formats on one ordered scale of colours, the same on curve, map and front: the fewer bits are
left, the brighter; dense is grey."""

from collections.abc import Sequence

from plotly.colors import sample_colorscale

from backend.sensitivity.profile import Format
from ui.theme import LIGHT

SCALE, BRIGHTEST, DARKEST = "Plasma", 0.92, 0.2
COLUMNS = 4096  # inputs of the layer formats are ordered by


def ordered(formats: Sequence[Format]) -> list[Format]:
    """Those with the fewest bits first, dense last."""
    return sorted(formats, key=lambda form: form.bits_per_weight(COLUMNS) - form.sparsity)


def format_colours(formats: Sequence[Format]) -> dict[Format, str]:
    """Format -> colour, in order; quantized and pruned ones each span the whole scale."""
    colours = dict.fromkeys(formats, LIGHT.muted)
    for quantized in (True, False):
        same = [x for x in ordered(formats) if x.quantized == quantized and x != Format()]
        step = (BRIGHTEST - DARKEST) / max(1, len(same) - 1)
        places = [BRIGHTEST - step * place for place in range(len(same))]
        colours |= zip(same, sample_colorscale(SCALE, places), strict=True)
    return {form: colours[form] for form in ordered(formats)}


def short_labels(formats: Sequence[Format]) -> list[str]:
    """As short as they can be told apart: "3" of widths, "50%" of patterns."""
    bits = [str(x.width.bits) if x.width else "16" for x in formats]
    short = len({*bits}) == len(bits) and not any(x.pattern for x in formats)
    words = [str(x) if x != Format() else "dense" for x in formats]
    return bits if short else words
