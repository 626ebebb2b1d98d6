"""How figures are written in sentences: a typographic minus, no "−0.0", and as many decimals as it
takes to tell different figures apart."""

from collections.abc import Callable, Iterable, Sequence


def fixed(value: float, places: int) -> str:
    """A figure with so many decimals: "1,234.5", "−0.3"; what rounds to zero has no sign."""
    text = f"{value:,.{places}f}"
    return text.replace("-", "−" if float(text.replace(",", "")) else "")


def signed(value: float, places: int) -> str:
    """A change with its sign: "+7.7", "−0.3"; "0.0" where it rounds to zero."""
    text = fixed(value, places)
    changed = float(text.replace(",", "").replace("−", "-")) > 0
    return f"+{text}" if changed else text


def times(factor: float, places: int = 2) -> str:
    """A factor: "1.32 ×", never broken between lines."""
    return f"{fixed(factor, places)}\u00a0×"


def apart(values: Sequence[float], places: int = 1, most: int = 4) -> list[str]:
    """Figures that stand in one sentence, all with the fewest decimals, from `places` to `most`,
    that tell as many of them apart as can be."""
    written = [[fixed(value, n) for value in values] for n in range(places, most + 1)]
    return next(texts for texts in written if len({*texts}) == len({*written[-1]}))


def extent(values: Iterable[float], write: Callable[[float], str], joint: str = " to ") -> str:
    """The smallest and the largest value, as in "3 to 5"; once where they read the same."""
    values = [*values]
    low, high = write(min(values)), write(max(values))
    return low if low == high else f"{low}{joint}{high}"


def relative_change(value: float, reference: float) -> str:
    """ "10.5 % lower than", "3.0 % higher than", or "equal to"."""
    change = fixed(100 * abs(value / reference - 1), 1)
    if not float(change.replace(",", "")):
        return "equal to"
    return f"{change} % {'lower' if value < reference else 'higher'} than"
