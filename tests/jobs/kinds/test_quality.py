"""What a run measures of a stage is recorded as a whole, or measured again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from backend.metric_key import MetricKey
from jobs.evaluation.quality import Quality


class KilledError(Exception):
    """The end of a process, as it would write one more thing."""


class Recorder:
    """Keeps what is recorded, until the process is killed."""

    def __init__(self, most: int) -> None:
        self.kept: list[str] = []
        self.most = most

    def _keep(self, name: str) -> None:
        if len(self.kept) == self.most:
            raise KilledError
        self.kept.append(name)

    def profile(self, profile: Any) -> None:
        self._keep(profile.name)

    def result(self, stage: str, metric: MetricKey, value: float, **_: Any) -> None:
        self._keep(str(metric))

    def has_result(self, stage: str, metric: MetricKey) -> bool:
        return str(metric) in self.kept

    def log(self, text: str) -> None:
        pass


def quality(context: Recorder, monkeypatch: pytest.MonkeyPatch) -> Quality:
    """The measurements of a stage whose figures are there at once."""
    module = "jobs.evaluation.quality"
    found = SimpleNamespace(value=2.0, stderr=0.1, bits_per_byte=1.0, tokens=8, windows=[1.0])
    compared = SimpleNamespace(agreement=0.9, agreement_stderr=0.1, kl=0.1, kl_stderr=0.1, tokens=8)
    monkeypatch.setattr(f"{module}.perplexity", lambda *_: found)
    monkeypatch.setattr(f"{module}.text_facts", lambda _: {})
    monkeypatch.setattr(
        f"{module}.DivergenceObserver", lambda *_: SimpleNamespace(result=lambda: compared)
    )
    made = Quality.__new__(Quality)
    made._divergence = True
    made._loaded, made._text = SimpleNamespace(model=None), None  # type: ignore[assignment]
    made._context, made._batch, made._labels = context, 1, {}  # type: ignore[assignment]
    made._new, made._reference = list, None  # type: ignore[assignment]
    monkeypatch.setattr(made, "_comparable", lambda: True)
    monkeypatch.setattr(made, "_observer", lambda *_: pytest.MonkeyPatch.context())
    return made


@pytest.mark.parametrize("role", ["", "kept"])
def test_a_kill_between_two_figures_of_a_stage_loses_none(
    monkeypatch: pytest.MonkeyPatch, role: Any
) -> None:
    whole = Recorder(99)
    quality(whole, monkeypatch)._measure_text("sds", role, None)  # type: ignore[arg-type]
    assert "window_losses" in whole.kept and ("kl_to_dense" in whole.kept) == bool(role)
    for most in range(len(whole.kept)):
        context = Recorder(most)
        made = quality(context, monkeypatch)
        with pytest.raises(KilledError):
            made._measure_text("sds", role, None)  # type: ignore[arg-type]
        assert made._text_missing("sds", role), f"killed behind {context.kept}"
