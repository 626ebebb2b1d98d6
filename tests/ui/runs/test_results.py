"""How figures are written."""

from __future__ import annotations

import pytest

from backend.metric_key import MetricKey
from jobs.metrics import metric
from ui.runs.results import format_stderr, format_value


@pytest.mark.parametrize(
    ("name", "value", "stderr", "written"),
    [
        ("accuracy/endings", 0.5573, 0.0359, ("55.73", "3.6")),
        ("top1_agreement", 0.9468, 0.0039, ("94.68", "0.39")),
        ("perplexity", 19.702, 1.16, ("19.70", "1.2")),
        ("perplexity", 19.702, None, ("19.70", "")),
    ],
)
def test_an_error_is_in_the_unit_of_its_value(
    name: str, value: float, stderr: float | None, written: tuple[str, str]
) -> None:
    shown = metric(MetricKey.parse(name))
    assert (format_value(shown, value), format_stderr(shown, stderr)) == written
