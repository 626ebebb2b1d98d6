"""Formatting of numbers, times and links: pure functions for pages, charts and templates. Text from
users and files must pass through `esc` before it is put into a chart; templates escape by
default."""

import html
import math
from datetime import UTC, datetime
from urllib.parse import urlencode

from markupsafe import Markup, escape

from backend.printable import readable_seconds
from jobs.wording import fixed

NONE = "–"
NBSP = "\u00a0"  # between a number and its unit, to prevent line breaks
MIN_PACE_SHARE = 0.1  # share of the work done from which the mean pace counts
ETA_SPREADS = ((0.6, 0.1), (0.25, 0.15), (0.05, 0.25), (0.0, 0.4))  # (work done, relative spread)
ACTIVE_IN_GRADIO = str.maketrans(
    {"$": "&#36;", "{": "&#123;", "}": "&#125;", "`": "&#96;", "\\": "&#92;"}
)


def esc(text: object) -> str:
    """Escape text for HTML, attributes, and Gradio templates (`${...}` and `{{...}}`)."""
    return html.escape(str(text), quote=True).translate(ACTIVE_IN_GRADIO)


def number(value: float | None, digits: int = 4) -> str:
    """Format with `digits` significant digits, in scientific notation only outside 1e-4 to 1e7."""
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
    """Format a number with its unit, such as 1.3 × or 82.4 tokens/s, without a line break."""
    return f"{number(value, digits)}{NBSP}{unit}"


def count(value: int | None) -> str:
    """Format an integer: 1,234,567."""
    return NONE if value is None else f"{value:,}"


def runs(number: int) -> str:
    """Format a number of runs: 1 run, 12 runs."""
    return f"{number:,} run{'' if number == 1 else 's'}"


def threads(number: int) -> str:
    """Format a number of threads: 1 thread, 2 threads."""
    return f"{number}{NBSP}thread{'' if number == 1 else 's'}"


def short_count(value: float | None) -> str:
    """Format a large count: 134.5 M."""
    return NONE if value is None else _scaled(value, ("", "k", "M", "G", "T"))


def size(value: float | None) -> str:
    """Format bytes in decimal units: 262 MB."""
    return NONE if value is None else _scaled(value, ("B", "kB", "MB", "GB", "TB"))


def _scaled(value: float, units: tuple[str, ...]) -> str:
    step = 0
    while abs(value) >= 999.5 and step < len(units) - 1:
        value, step = value / 1000, step + 1
    places = 0 if step == 0 or abs(value) >= 99.95 else 1
    return f"{value:,.{places}f}{NBSP if units[step] else ''}{units[step]}"


def share(value: float | None, places: int = 1) -> str:
    """Format a fraction as a percentage: 0.5 as "50.0 %"."""
    return NONE if value is None or math.isnan(value) else f"{fixed(100 * value, places)}{NBSP}%"


def duration(seconds: float | None) -> str:
    """Format seconds such as "3 min 20 s"; see `readable_seconds`."""
    return NONE if seconds is None or not math.isfinite(seconds) else readable_seconds(seconds)


def eta(seconds: float | None) -> str:
    """Format the estimated time left: "about 5 min"."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    if seconds < 60:
        return "under a minute"
    minutes = round(seconds / 60)
    return f"about {minutes}{NBSP}min" if minutes < 90 else f"about {seconds / 3600:.1f}{NBSP}h"


def eta_range(seconds: float | None, share: float | None, elapsed: float | None = None) -> str:
    """Format the estimated time left as a range that narrows with the share done: "4–7 min". It
    includes the time at the mean pace of the `elapsed` seconds."""
    if seconds is None or not math.isfinite(seconds):
        return NONE
    done = share or 0.0
    spread = next(width for min_share, width in ETA_SPREADS if done >= min_share)
    by_pace = elapsed * (1 - done) / done if elapsed and done >= MIN_PACE_SHARE else seconds
    low, high = min(seconds, by_pace) * (1 - spread), max(seconds, by_pace) * (1 + spread)
    return "under a minute" if high < 60 else time_range(low, high)


def time_range(low: float, high: float) -> str:
    """Format a range of seconds with two digits: "40–70 s", "4–7 min"."""
    unit, length = ("s", 1) if high < 120 else ("min", 60) if high < 7200 else ("h", 3600)
    first, last = (f"{float(f'{max(x / length, 0.1):.2g}'):g}" for x in (low, high))
    return f"{first}–{last}{NBSP}{unit}" if first != last else f"about {first}{NBSP}{unit}"


def moment(ms: int | None) -> str:
    """Format a timestamp: 2026-11-25 01:11:47 UTC."""
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
    return NBSP.join(duration(seconds).split(NBSP)[:2]) + " ago"


def href(path: str, **query: object) -> Markup:
    """Return a relative link that also works behind a URL prefix: "run?id=sds-0042". Empty values
    are left out."""
    encoded = urlencode({k: v for k, v in query.items() if v not in (None, "")})
    return escape(path or "./") + (escape(f"?{encoded}") if encoded else "")


def term_id(term: str) -> str:
    """Return the anchor of a term in the help drawer."""
    return "term-" + "".join(c if c.isalnum() else "-" for c in term.lower())


FILTERS = {
    "exactly": repr,
} | {
    f.__name__: f
    for f in (
        number,
        of_unit,
        count,
        runs,
        short_count,
        size,
        share,
        duration,
        eta,
        moment,
        iso,
        ago,
        term_id,
    )
}
