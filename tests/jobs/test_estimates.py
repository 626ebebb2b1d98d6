"""Tests of the estimated duration: from work, machine rates and finished runs."""

import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given as drawn
from hypothesis import strategies as st
from pydantic import ValidationError

from backend.compiler import kernel_version
from backend.store.session import writing
from backend.store.states import State
from jobs import estimates
from jobs.estimates import REFERENCE_RATES, REST, FinishedRun, PhaseWork, Rates, estimate, processor
from jobs.runtime import probe
from jobs.submit import check_and_estimate
from tests.conftest import Given
from tests.queue.conftest import bare_job

HERE = Rates(float32=3e10, bfloat16=1e11, memory=1e10, disk=1e8)
TRAINING = PhaseWork("train", 1e12)
SMALL = {"model": "toy", "segments": 4, "context": 64, "windows": 4}


@pytest.fixture
def measured(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with known rates, without reference runs."""
    monkeypatch.setattr(estimates, "rates_here", lambda: HERE)
    monkeypatch.setattr(estimates, "reference_runs", tuple)


def finished(number: int, seconds: float, work: PhaseWork = TRAINING, **values: object) -> None:
    """Store a finished run of this machine with this work and duration."""
    recorded = {"kernels": kernel_version(), "steps": estimates.by_step([work])}
    place = {"device": "cpu", "cpu": f"{processor()}, 2 of 2 cores", "threads": 1}
    row = {
        "id": number,
        "kind": "amphista",
        "config": {"model": "toy"},
        "state": State.SUCCEEDED,
        "attempts_made": 1,
        "started_at": 1000,
        "finished_at": 1000 + round(1000 * seconds),
        "environment": place | {"work": recorded},
    }
    environment = row["environment"] | dict(values.pop("environment", {}))  # type: ignore[operator, call-overload]
    with writing() as session:
        session.add(bare_job(**(row | values | {"environment": environment})))


def told(
    *work: PhaseWork, model: str = "toy", device: str = "auto", threads: int = 1
) -> estimates.Duration:
    config = {"model": model, "device": device, "threads": threads}
    return estimate("amphista", config, work or [TRAINING])


def width(**about: Any) -> float:
    duration = told(**about)
    return duration.high / duration.low


def test_without_a_probe_and_runs_it_says_so_and_the_range_is_wide(
    queue: Path, monkeypatch: pytest.MonkeyPatch, given: Given
) -> None:
    given(CACHE_DIR=str(queue / "cache"))
    duration, blind = told(), width()
    assert duration.low < duration.seconds < duration.high and "not measured" in duration.basis
    monkeypatch.setattr(estimates, "rates_here", lambda: HERE)
    assert "not measured" not in told().basis and width() < blind
    monkeypatch.setattr(estimates, "rates_here", lambda: HERE.model_copy(update={"load": 3.0}))
    assert "busy" in told().basis


def test_after_one_run_the_range_holds_it_and_is_at_most_twice_as_wide(measured: None) -> None:
    before = width()
    finished(1, 100)
    duration = told()
    assert duration.low < 100 < duration.high and width() <= 2 < before
    assert duration.basis == "1 run like this on this machine"


def test_agreeing_runs_make_it_narrower_and_an_odd_one_does_not_move_it(measured: None) -> None:
    for number, seconds in enumerate((100, 104, 108), 1):
        finished(number, seconds)
    assert width() < 1.7 and told().basis == "3 runs like this on this machine"
    finished(4, 5000)
    finished(5, 102)
    assert told().seconds < 150


def test_one_run_on_a_busy_machine_is_not_taken_at_face_value(
    measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = estimates.FinishedRun(
        kind="amphista",
        model="toy",
        machine="another",
        threads=1,
        rates=HERE,
        steps=estimates.by_step([TRAINING]),
        seconds={estimates.REST: 100.0},
    )
    monkeypatch.setattr(estimates, "reference_runs", lambda: (usual,))
    before = told().seconds
    finished(1, 500)
    duration = told()
    assert before < duration.seconds < 300 and duration.low <= 110 and duration.high >= 490
    for number in (2, 3):
        finished(number, 500)
    assert told().seconds == pytest.approx(500, rel=0.05)


def test_what_another_machine_model_or_version_says_is_less_certain(measured: None) -> None:
    finished(1, 100)
    own_width = width()
    assert own_width < width(model="smollm2-135m")
    for number, environment in enumerate(
        (
            {"cpu": "Another processor, 2 of 2 cores"},
            {"threads": 2},
            {"work": {"kernels": "another", "steps": estimates.by_step([TRAINING])}},
        ),
        2,
    ):
        finished(number, 100, kind="sds", environment=environment)
        duration = estimate("sds", {"model": "toy"}, [TRAINING])
        assert duration.high / duration.low > own_width and "reference runs" in duration.basis


@pytest.mark.parametrize(
    ("environment", "times", "tolerance"),
    [({"cpu": "Another processor, 2 of 2 cores"}, 2, 0.5), ({}, 1, 0.1)],
)
def test_a_faster_probe_counts_only_for_runs_of_another_machine(
    measured: None, monkeypatch: pytest.MonkeyPatch, environment: dict, times: int, tolerance: float
) -> None:
    """A processor twice as fast takes half as long. The work consists of products only."""
    finished(1, 100, environment=environment)
    before = told().seconds
    faster = HERE.model_copy(update={"float32": 6e10, "bfloat16": 2e11})
    monkeypatch.setattr(estimates, "rates_here", lambda: faster)
    assert told().seconds == pytest.approx(before / times, rel=tolerance)


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"model": "toy"}, "kind": "sds"},
        {"attempts_made": 2},
        {"state": State.FAILED},
        {"environment": {"work": "none"}},
        {"environment": {"work": {"kernels": "", "steps": {REST: {"bfloat16": -1}}}}},
        {"environment": {"work": {"kernels": "", "steps": {REST: {"furlongs": 1}}}}},
        {"environment": {"threads": 0}},
        {"environment": {"device": None}},
    ],
)
def test_interrupted_runs_other_kinds_and_odd_records_teach_nothing(
    measured: None, values: dict
) -> None:
    before = told()
    finished(1, 5000, **values)
    assert told() == before


def test_a_time_budget_is_taken_as_given(measured: None) -> None:
    short, long = (
        told(PhaseWork("data", 1e11), PhaseWork("train", 60 * n, "seconds", "training"))
        for n in (1, 11)
    )
    assert long.seconds - short.seconds == pytest.approx(600)
    assert long.high / long.low < short.high / short.low  # most of it is known


def test_where_a_gpu_may_be_used_the_newest_run_on_one_counts(
    measured: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    finished(1, 100)
    finished(2, 7, environment={"device": "NVIDIA B1"})
    assert told().seconds == pytest.approx(100, rel=0.1)
    monkeypatch.setattr(estimates, "installed_gpus", lambda: [0])
    assert told().seconds == pytest.approx(7, rel=0.1)
    assert told(device="cpu").seconds == pytest.approx(100, rel=0.1)


# a geometric scale: two neighboring floats may round to the same number of seconds
@drawn(
    st.lists(st.integers(0, 60).map(lambda n: 1e6 * 1.4**n), min_size=2, max_size=4, unique=True)
)
def test_more_work_takes_longer_and_the_phases_share_it(amounts: list[float]) -> None:
    rates, runs = estimates.rates_here, estimates.finished_runs
    estimates.rates_here, estimates.finished_runs = (lambda: HERE), (lambda _: [])
    try:
        durations = [told(PhaseWork("one", n), PhaseWork("two", n)) for n in sorted(amounts)]
    finally:
        estimates.rates_here, estimates.finished_runs = rates, runs
    assert all(a.seconds < b.seconds for a, b in pairwise(durations))
    for duration in durations:
        assert [*duration.phases] == ["one", "two"]
        assert duration.phases["one"] == duration.phases["two"]


@pytest.mark.parametrize(
    ("kind", "field", "values"),
    [
        ("sds", "segments", (4, 40, 400)),
        ("sds", "windows", (4, 40, 400)),
        ("sds", "redense_steps", (10, 100, 1000)),
        ("sds", "base", ("wanda", "sparsegpt", "admm", "alps")),
        ("sds", "reconstruct", (0, 1, 3)),
        ("dlqat", "steps", (10, 100, 1000)),
        ("dlqat", "context", (64, 128, 256)),
        ("dlqat", "stages", ("rtn", "rtn, gptq", "rtn, gptq, dlqat")),
        ("amphista", "answers", (112, 224, 448)),
        ("evaluation", "windows", (4, 40, 400)),
        ("profile", "segments", (8, 16, 32)),
        ("benchmark", "rounds", (1, 3, 9)),
    ],
)
def test_more_tokens_weights_or_passes_take_longer(
    queue: Path, kind: str, field: str, values: tuple
) -> None:
    settings = SMALL if kind in ("sds", "dlqat") else {"model": "toy"}
    seconds = [check_and_estimate(kind, {**settings, field: value})[1].seconds for value in values]
    assert all(a < b for a, b in pairwise(seconds)), seconds


def test_each_kind_has_reference_runs(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {run.kind for run in estimates.reference_runs()}
    assert {"sds", "dlqat", "amphista", "benchmark", "profile", "evaluation"} <= kinds
    monkeypatch.setattr(estimates, "processor", lambda: "Another processor")
    assert "reference runs" in check_and_estimate("sds", {"model": "smollm2-135m"})[1].basis


# the probe ----------------------------------------------------------------------------------------


@pytest.fixture
def cache(queue: Path, given: Given, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache on an idle machine, which is measured at once."""
    given(CACHE_DIR=str(queue / "cache"))
    monkeypatch.setattr(probe.os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    for name, value in (("MEASUREMENT_S", 0.0), ("COPIED_BYTES", 2**16), ("WRITTEN_BYTES", 2**16)):
        monkeypatch.setattr(probe, name, value)
    return queue / "cache"


def test_a_machine_is_measured_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert estimates.rates_here() is REFERENCE_RATES
    probe.measure_once()
    rates = estimates.rates_here()
    assert rates is not REFERENCE_RATES and rates.load == 0
    monkeypatch.setattr(probe, "measure", lambda _: pytest.fail("It was measured again."))
    probe.measure_once()
    assert estimates.rates_here() == rates


def test_another_processor_torch_or_kernel_is_measured_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probe.measure_once()
    for name, changed in (("processor", "other"), ("version", "9"), ("kernel_version", "9")):
        with monkeypatch.context() as patch:
            patch.setattr(estimates, name, lambda *_, changed=changed: changed)
            assert estimates.rates_here() is REFERENCE_RATES
    assert estimates.rates_here() is not REFERENCE_RATES


def test_a_busy_machine_is_measured_again_when_it_is_idle(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = [40.0, 39.0, 0.0]
    monkeypatch.setattr(probe.os, "getloadavg", lambda: (loads[0], 0.0, 0.0))
    seen = []
    for _ in range(3):
        probe.measure_once()
        seen.append(estimates.rates_here().load)
        loads.pop(0)
    assert seen[0] == seen[1] > 0 == seen[2]


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"float32": -1}', "\0", '{"float32": NaN, "bfloat16": 1}']
)
def test_a_damaged_file_counts_as_none(cache: Path, text: str) -> None:
    path = estimates.rates_file()
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert estimates.rates_here() is REFERENCE_RATES
    probe.measure_once()
    assert estimates.rates_here() is not REFERENCE_RATES


def test_one_process_measures_at_a_time(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other processes do not wait for the measurement."""
    began, release, count = threading.Event(), threading.Event(), list[float]()

    def slow(load: float) -> Rates:
        count.append(load)
        began.set()
        release.wait(10)
        return HERE

    monkeypatch.setattr(probe, "measure", slow)
    first = threading.Thread(target=probe.measure_once)
    first.start()
    assert began.wait(10)
    probe.measure_once()
    assert len(count) == 1 and estimates.rates_here() is REFERENCE_RATES
    release.set()
    first.join()
    assert estimates.rates_here() == HERE


def test_no_run_fails_where_the_cache_cannot_be_written(cache: Path) -> None:
    cache.write_text("no folder")
    probe.measure_once()
    assert estimates.rates_here() is REFERENCE_RATES


RUN = {"kind": "sds", "model": "", "machine": "", "threads": 1, "steps": {}}


@pytest.mark.parametrize("odd", [-1, float("nan"), float("inf"), "fast", None])
def test_odd_rates_and_seconds_are_refused(odd: object) -> None:
    for name in ("float32", "bfloat16", "memory", "disk"):
        with pytest.raises(ValidationError):
            Rates.model_validate(HERE.model_dump() | {name: odd})
    with pytest.raises(ValidationError):
        FinishedRun.model_validate(RUN | {"seconds": {REST: odd}})
    with pytest.raises(ValidationError):
        Rates.model_validate(HERE.model_dump() | {"float32": 0})
