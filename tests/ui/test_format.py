"""Words for numbers, times and people's texts."""

import html
import re
from urllib.parse import parse_qs, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import SlimscopeError
from backend.store.states import State
from ui.format import (
    NBSP,
    NONE,
    ago,
    count,
    duration,
    esc,
    eta,
    eta_range,
    href,
    moment,
    number,
    share,
    short_count,
    size,
    time_range,
)
from ui.widgets.html import badge, problem, time_tag


@given(st.text())
def test_escaped_text_reads_the_same_and_holds_nothing_active(text: str) -> None:
    escaped = esc(text)
    assert html.unescape(escaped) == html.unescape(html.escape(text))
    assert not set("<>\"'$`{}\\") & set(escaped)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "–"),
        (float("nan"), "–"),
        (float("inf"), "∞"),
        (0, "0"),
        (12.3456, "12.35"),
        (-0.014324, "−0.01432"),
        (1234.5, "1,234"),
        (3.2e-6, "3.200e−6"),
        (4.56e9, "4.560e9"),
    ],
)
def test_number(value: float | None, words: str) -> None:
    assert number(value) == words


@given(st.floats(min_value=1e-12, max_value=1e15))
def test_a_number_keeps_four_digits(value: float) -> None:
    read = float(number(value).replace(",", "").replace("−", "-"))
    assert read == pytest.approx(value, rel=6e-4)


def test_amounts_and_times() -> None:
    assert count(1234567) == "1,234,567"
    assert (short_count(134_515_008), short_count(999), short_count(1_500)) == (
        "135\u00a0M",
        "999",
        "1.5\u00a0k",
    )
    assert (size(0), size(999.6), size(262_000_000)) == ("0\u00a0B", "1.0\u00a0kB", "262\u00a0MB")
    assert (share(0.5), share(0.12345, 2), share(None)) == ("50.0\u00a0%", "12.35\u00a0%", "–")
    assert [eta(s) for s in (20, 300, 7200, None)] == [
        "under a minute",
        "about 5\u00a0min",
        "about 2.0\u00a0h",
        "–",
    ]
    assert moment(1_764_033_107_000) == "2025-11-25 01:11:47 UTC"
    assert [ago(0, ms) for ms in (2000, 240_000, 90_000_000)] == [
        "just now",
        "4\u00a0min ago",
        "1\u00a0d ago",
    ]
    assert 'title="1970-01-01 00:00:00 UTC"' in time_tag(0, 240_000)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (None, "–"),
        (0, "0 s"),
        (0.42, "0.4 s"),
        (42, "42 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (3600 * 76 + 7, "3 d 4 h"),
    ],
)
def test_duration_names_the_two_largest_units(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words.replace(" ", NBSP)


def test_states_links_and_problems() -> None:
    marks = {badge(state) for state in State}
    assert len(marks) == len(State)
    assert all('aria-hidden="true"></i>' not in mark for mark in marks)
    assert href("") == "./"
    assert href("runs", q="failed", sort="", page=None) == "runs?q=failed"
    said = problem(SlimscopeError("It <failed>.", "No room.", "Free some."))
    assert 'role="alert"' in said
    assert "It &lt;failed&gt;." in said and "No room. Free some." in said


@given(st.text(max_size=30))
def test_a_link_carries_its_values_and_no_active_character(text: str) -> None:
    link = href("run", id=text)
    assert not set("<>\"'${}`") & set(link)
    assert parse_qs(urlsplit(html.unescape(link)).query).get("id", [""]) == [text]


@pytest.mark.parametrize(
    ("seconds", "share", "written"),
    [
        (None, 0.5, NONE),
        (20.0, 0.01, "under a minute"),
        (600.0, 0.01, "6–14 min"),
        (600.0, 0.3, "8.5–12 min"),
        (600.0, 0.9, "9–11 min"),
        (70.0, 0.9, "63–77 s"),
        (7200.0, None, "1.2–2.8 h"),
        (7200.0, 0.9, "1.8–2.2 h"),
    ],
)
def test_the_time_left_is_as_narrow_as_the_work_done_allows(
    seconds: float | None, share: float | None, written: str
) -> None:
    assert eta_range(seconds, share) == re.sub(" (s|min|h)$", rf"{NBSP}\1", written)
    if seconds and share and share > 0.1:  # the mean pace says something else
        slow = eta_range(seconds, share, 3 * seconds * share / (1 - share))
        assert slow != eta_range(seconds, share)


@pytest.mark.parametrize(
    ("low", "high", "written"),
    [
        (0.0, 0.04, "about 0.1 s"),
        (2.6, 5.2, "2.6–5.2 s"),
        (41.2, 68.7, "41–69 s"),
        (63.0, 126.0, "1.1–2.1 min"),
        (600.0, 601.0, "about 10 min"),
        (4000.0, 8000.0, "1.1–2.2 h"),
    ],
)
def test_a_range_of_time_has_two_digits(low: float, high: float, written: str) -> None:
    assert time_range(low, high) == re.sub(" (s|min|h)$", rf"{NBSP}\1", written)
