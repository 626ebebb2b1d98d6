"""Numbers, times and links as text: pure functions for pages, charts and templates. Text of persons
or files goes through `esc` before it is put into a chart; templates escape by themselves."""

import html
import math
from datetime import UTC, datetime
from urllib.parse import urlencode

from markupsafe import Markup, escape

from backend.printable import readable_seconds
from jobs.wording import fixed

NONE = "–"
HOLD = "\u00a0"  # between a figure and its unit: no line breaks there
SPREADS = ((0.6, 0.1), (0.25, 0.15), (0.05, 0.25), (0.0, 0.4))  # of the time left, by work done
ACTIVE_IN_GRADIO = str.maketrans(
    {"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "\\": "&#92;"}
)


def esc(text: object) -> str:
    """Escapes text for HTML, attributes, and Gradio templates: `${...}` and `{{...}}`."""
    return html.escape(str(text), quote=True).translate(ACTIVE_IN_GRADIO)


def number(value: float | None, digits: int = 4) -> str:
    """`digits` significant digits, in powers of ten only where plain digits would mislead."""
    if value is None or math.isnan(value):
        return NONE
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    power = math.floor(math.log10(abs(value)))
    if not -4 < power < 7:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e").replace("-", "−")
    return fixed(value, max(0, digits - 1 - power))


def of_unit(value: float | None, unit: str, digits: int = 4) -> str:
    """1.3 × and 82.4 tokens/s, never broken between lines."""
    return f"{number(value, digits)}{HOLD}{unit}"


def count(value: int | None) -> str:
    """1,234,567."""
    return NONE if value is None else f"{value:,}"


def runs(number: int) -> str:
    """1 run, 12 runs."""
    return f"{number:,} run{'' if number == 1 else 's'}"


def threads(number: int) -> str:
    """1 thread, 2 threads."""
    return f"{number}{HOLD}thread{'' if number == 1 else 's'}"


def short_count(value: float | None) -> str:
    """134.5 M."""
    return NONE if value is None else _scaled(value, ("", "k", "M", "G", "T"))


def size(value: float | None) -> str:
    """Bytes in decimal units: 262 MB."""
    return NONE if value is None else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    places = 0 if step == 0 or abs(value) >= 99.95 else 1
    return f"{value:,.{places}f}{HOLD if units[step] else ''}{units[step]}"


def share(value: float | None, places: int = 1) -> str:
    """0.5 as "50.0 %"."""
    return NONE if value is None or math.isnan(value) else f"{fixed(100 * value, places)}{HOLD}%"


def duration(seconds: float | None) -> str:
    """Such as "3 min 20 s"; see `readable_seconds`."""
    return NONE if seconds is None or not math.isfinite(seconds) else readable_seconds(seconds)


def eta(seconds: float | None) -> str:
    """Estimated time left, as in "about 5 min"."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return "under a minute"
    minutes = round(seconds / 60)
    return f"about {minutes}{HOLD}min" if minutes < 90 else f"about {seconds / 3600:.1f}{HOLD}h"


def eta_range(seconds: float | None, share: float | None) -> str:
    """Estimated time left as a range that narrows with the share done: "4–7 min"."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    spread = next(width for least, width in SPREADS if (share or 0.0) >= least)
    if seconds * (1 + spread) < 60:
        return "under a minute"
    return time_range(seconds * (1 - spread), seconds * (1 + spread))


def time_range(low: float, high: float) -> str:
    """A range of seconds to two digits: "40–70 s", "4–7 min"."""
    unit, length = ("s", 1) if high < 120 else ("min", 60) if high < 7200 else ("h", 3600)
    first, last = (f"{float(f'{max(x / length, 0.1):.2g}'):g}" for x in (low, high))
    return f"{first}–{last}{HOLD}{unit}" if first != last else f"about {first}{HOLD}{unit}"


def moment(ms: int | None) -> str:
    """The full time: 2026-11-25 01:11:47 UTC."""
    if ms is None:
        return NONE
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="seconds")


def ago(ms: int | None, now: int) -> str:
    if ms is None:
        return NONE
    seconds = max(0, (now - ms) // 1000)
    if seconds < 10:
        return "just now"
    return HOLD.join(duration(seconds).split(HOLD)[:2]) + " ago"


def href(path: str, **query: object) -> Markup:
    """Link that works behind a prefix, too: "run?id=sds-0042"; empty values are left out."""
    chosen = urlencode({k: v for k, v in query.items() if v not in (None, "")})
    return escape(path or "./") + (escape(f"?{chosen}") if chosen else "")


def term_id(term: str) -> str:
    """The anchor of a term on Help."""
    return "term-" + "".join(c if c.isalnum() else "-" for c in term.lower())


def exactly(value: float) -> str:
    return repr(value)


FILTERS = {
    f.__name__: f
    for f in (
        exactly,
        number,
        of_unit,
        count,
        runs,
        short_count,
        size,
        share,
        duration,
        eta,
        eta_range,
        moment,
        iso,
        ago,
        term_id,
    )
}
