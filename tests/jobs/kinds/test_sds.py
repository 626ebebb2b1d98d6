"""Tests of SDS jobs on the toy model: their records and files."""

import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors.torch import load_file, save_file

from backend.errors import ConfigError, ModelError
from backend.metric_key import MetricKey
from backend.models.memory import RUNTIME_BYTES
from backend.models.sources.cache import CacheOrigin
from backend.models.sources.catalog import inspect
from backend.models.sources.headers import read_headers
from backend.models.sources.spec import TOY_FOLDER
from backend.pruning.plan import PruningPlan
from backend.queue.artifacts import run_folder, work_folder
from backend.queue.service import enqueue
from backend.statistics.paired import WINDOW_LOSSES
from backend.store import frames, queries
from backend.store.states import State
from backend.store.tables import Job
from backend.store.tensors import profiles
from jobs import sweep
from jobs.imported import validate_plan
from jobs.metrics import PERPLEXITY
from jobs.profile.kind import ProfileJob
from jobs.record import record, tensors
from jobs.reproduction import reproduce
from jobs.runtime.main import error_record
from jobs.sds.kind import SDSJob, hidden_state_bytes, memory_bytes, requirements
from jobs.submit import check_and_estimate, submit
from tests.jobs.kinds.conftest import Reload
from tests.queue.conftest import HOST, Wait, succeeded
from tests.refusals import refusal

SMALL = {
    "model": "toy",
    "segments": 8,
    "context": 64,
    "windows": 8,
    "adjust_steps": 5,
    "redense_steps": 5,
    "threads": 1,
    "precision": "float32",
    "evaluation_precision": "float32",
    "control": True,
}


FILE = "model.safetensors"
LITTLE = int(1.1 * RUNTIME_BYTES)  # memory that a run on the toy fits into, but not comfortably


def finished(wait: Wait, **values: object) -> Job:
    return succeeded(wait, "sds", {**SMALL, **values})


def test_the_whole_run_and_what_it_leaves(wait: Wait, reloaded: Reload) -> None:
    job = finished(wait, pattern="2:4", base="wanda")
    run_record = record(job.run)
    assert {"id", "kind", "state", "config", "results", "artifacts", "timings"} <= set(run_record)
    ppl = {r["stage"]: r["value"] for r in run_record["results"] if r["metric"] == "perplexity"}
    assert list(ppl) == sorted(["dense", "first", "control", "redense", "second", "sds"])
    assert ppl["dense"] < ppl["first"] and ppl["sds"] < ppl["first"]
    rows = tensors(job.run)
    assert len(rows) == 21 * 6  # every linear at every stage
    pruned = [t for t in rows if t["stage"] in ("first", "control", "sds")]
    assert all(t["zero_share"] == 0.5 for t in pruned)
    assert run_record["environment"]["text"]["evaluation"]["corpus"] == "toystories"
    kept_stage = run_record["kept_stage"]
    plain = reloaded(job.run, 8)
    assert plain["perplexity"] == pytest.approx(ppl[kept_stage], rel=1e-4)
    assert plain["zero_share"] == 0.5
    losses = {p.stage: p.values for p in profiles(job.id, "", WINDOW_LOSSES)}
    assert {s: math.exp(v.mean()) for s, v in losses.items()} == pytest.approx(ppl, rel=1e-5)
    saved = read_headers(run_folder(job.run) / "model").values()
    assert {header.dtype for header in saved} == {"F16"}  # as the base is stored
    assert not work_folder(job.run).exists()  # checkpoints are gone once they are not needed


@pytest.fixture
def restored(queue: Path) -> str:
    """A model in float32 that was restored from a file of 4 bits a weight."""
    folder = queue / "models" / "restored"
    shutil.copytree(TOY_FOLDER, folder)
    weights = {name: values.float() * 1.001 for name, values in load_file(folder / FILE).items()}
    save_file(weights, folder / FILE, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"dtype": "float32"}))
    CacheOrigin("Restored", "", "", "", inspect("toy").parameters // 2).write(folder)
    return str(folder)


def test_a_model_restored_from_few_bits_is_saved_in_16(
    wait: Wait, reloaded: Reload, restored: str
) -> None:
    _, cost = check_and_estimate("sds", SMALL | {"model": restored})
    assert (inspect(restored).dtype, inspect(restored).saved_dtype) == ("float32", "bfloat16")
    assert cost.size_after_bytes > 3 * cost.size_before_bytes
    assert "larger than the file of its source" in cost.field_warnings["pattern"]
    values = {"calibration_text": "toystories", "evaluation_text": "toystories"}
    job = finished(wait, model=restored, base="wanda", until="first", **values)
    folder = run_folder(job.run) / "model"
    saved = read_headers(folder).values()
    assert {header.dtype for header in saved if len(header.shape) > 1} == {"BF16"}
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    run_record = record(job.run)
    assert run_record["size_before_bytes"] == inspect("toy").parameters // 2
    assert run_record["size_after_bytes"] == pytest.approx(size, rel=0.05)
    measured = {r.stage: r.value for r in queries.results([job.id]) if r.metric == PERPLEXITY}
    kept = measured[run_record["kept_stage"]]
    assert reloaded(job.run, 8)["perplexity"] == pytest.approx(kept, rel=1e-4)
    (Path(restored) / "SOURCE.json").unlink()  # then it is a model in float32
    _, cost = check_and_estimate("sds", SMALL | {"model": restored})
    assert inspect(restored).saved_dtype == "float32" and not cost.field_warnings


def test_a_streamed_run_ends_as_one_in_memory(wait: Wait, reloaded: Reload) -> None:
    small = {"until": "first", "pattern": "50%", "allocation": "owl", "control": False}
    in_memory = finished(wait, **small)
    streamed = finished(wait, **small, weights="streamed", activations="disk")
    assert streamed.environment["weights_sha256"] == in_memory.environment["weights_sha256"]
    for metric in ("perplexity", "zero_share"):
        values = [
            {r.stage: r.value for r in queries.results([j.id]) if str(r.metric) == metric}
            for j in (in_memory, streamed)
        ]
        assert values[0] == values[1] and values[0].keys() == {"dense", "first"}
    curves = frames.by_key(frames.curves(streamed.id))
    assert {*curves[MetricKey("owl", "", "sparsity", "block")]["step"]} == {0, 1, 2}
    assert reloaded(streamed.run, 8)["zero_share"] == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("segments", "holdout", "windows"),
    [(8, 0.125, 8), (12, 0.125, 8), (24, 0.125, 12), (32, 0.125, 16), (256, 0.125, 32), (32, 0, 0)],
)
def test_a_stage_is_kept_on_16_windows_where_there_is_text(
    segments: int, holdout: float, windows: int
) -> None:
    values = {"segments": segments, "holdout": holdout}
    assert SDSJob.model_validate(values).heldout_windows == windows
    assert ProfileJob.model_validate(values).heldout_windows == min(windows, max(8, segments // 8))


def test_data_free_calibration(wait: Wait) -> None:
    job = finished(wait, calibration_text="self", pattern="50%", adjust="off", control=False)
    assert job.environment["text"]["calibration"]["corpus"] == "self"
    stages = {r.stage for r in queries.results([job.id]) if str(r.metric) == "perplexity"}
    assert stages == {"dense", "first", "redense", "second"}


def test_the_plan_of_the_submission_is_stored_repeated_and_checked_on_import(queue: Path) -> None:
    values = {**SMALL, "exclude": "0.*", "overrides": "mlp.*=50%"}
    runs = [submit("sds", values, HOST), *sweep.queue("sds", values, {"seed": ["1", "2"]}, HOST)]
    config, estimate = check_and_estimate("sds", values)
    plan = estimate.plan.model_dump(mode="json")
    assert [queries.plan(x.id) for x in (*runs, reproduce(runs[0].id, HOST))] == 4 * [plan]
    assert validate_plan(PruningPlan, config, plan) == plan
    other_config, _ = check_and_estimate("sds", SMALL)
    for expected, config_of_plan, stored_plan, message in (
        (PruningPlan, other_config, plan, "does not match the config"),
        (PruningPlan, config, None, "missing"),
        (PruningPlan, config, {**plan, "more": 1}, "Extra inputs"),
        (None, config, plan, "have no plan"),
    ):
        with pytest.raises(ValueError, match=message):
            validate_plan(expected, config_of_plan, stored_plan)


def test_a_run_without_a_plan_says_so(wait: Wait) -> None:
    job = enqueue("sds", SMALL, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.FAILED
    assert "no plan" in queries.job(job.id).error["what"]


@pytest.mark.parametrize(
    ("available", "values", "streamed"),
    [
        (10**10, {}, False),
        (10**10, {"weights": "streamed"}, True),
        (LITTLE, {}, True),
        (LITTLE, {"weights": "memory"}, False),
        (LITTLE, {"calibration_text": "self"}, False),
    ],
)
def test_what_would_not_fit_is_streamed(available: int, values: dict, streamed: bool) -> None:
    config = SDSJob.model_validate({**SMALL, **values})
    is_streamed, needed = memory_bytes(config, inspect("toy"), available)
    assert is_streamed is streamed
    assert (needed["weights"] < 4 * inspect("toy").parameters) is streamed


def test_solvers_cost_the_products_they_make() -> None:
    """The second pruning costs as much as the first."""
    facts = inspect("toy")
    product = sum(x.rows * x.columns**2 for x in facts.linears)
    for until, prunings in (("first", 1), ("sds", 2)):
        work = []
        for base in ("wanda", "sparsegpt", "admm", "alps"):
            config = SDSJob.model_validate({**SMALL, "base": base, "until": until})
            work.append(amount(config, "pruning") / product / prunings)
        assert work == [1, 2, 22, 201]


def amount(config: SDSJob, step: str) -> float:
    return sum(
        phase_work.amount for phase_work in requirements(config).work if phase_work.step == step
    )


def test_reconstruction_costs_three_passes_an_epoch_and_the_memory_to_train_a_block() -> None:
    facts, epochs = inspect("toy"), (0, 1, 3)
    configs = [SDSJob.model_validate({**SMALL, "reconstruct": n}) for n in epochs]
    needed = [memory_bytes(config, facts, 10**10)[1] for config in configs]
    one_pass = facts.linear_weights * configs[0].segments * configs[0].context
    passes = [amount(config, "block reconstruction") / one_pass for config in configs]
    share = 2 * configs[0].heldout_windows / configs[0].segments
    expected = [0, 2 * (2 + 3 + share), 2 * (2 + 9 + share)]  # of the control and of SDS
    assert [n - passes[0] for n in passes] == pytest.approx(expected)
    memory = [each.get("reconstruction", 0) for each in needed]
    assert memory[0] == 0 < memory[1] == memory[2]
    states = [hidden_state_bytes(config, facts) for config in configs]
    # those of the dense model, too, and held-out windows
    assert states[1] == states[2] == 2 * states[0] * (1 + share / 2)


def test_what_does_not_fit_even_so_is_refused_with_what_to_lower(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: LITTLE)
    _, estimate = check_and_estimate("sds", SMALL)
    assert "read from disk" in estimate.warnings[-1]
    with refusal("segments", "on disk", error=ModelError):
        check_and_estimate(
            "sds", {**SMALL, "segments": 4096, "context": 256, "activations": "memory"}
        )
    check_and_estimate(
        "sds", {**SMALL, "segments": 4096, "context": 256}
    )  # they wait on disk by themselves


def test_memory_that_does_not_last_says_what_to_lower() -> None:
    message = (
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"
    )
    error = error_record(RuntimeError(f"{message}.\nStack"))
    assert error["what"] == "The run ran out of memory."
    assert error["why"].endswith("9 bytes.") and "fewer segments" in error["do"]
    assert "unexpected error" in error_record(RuntimeError("shapes cannot be multiplied"))["what"]


def test_the_disk_is_asked_for_every_stage(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    facts = inspect("toy")
    pruned = facts.linear_weights
    whole = requirements(SDSJob.model_validate(SMALL)).disk.bytes
    for values, more in (
        ({"control": False}, -2 * pruned),
        ({"base": "sparsegpt"}, 0),
        ({"until": "first"}, -8 * pruned),
        ({"activations": "disk"}, 2 * 4 * 8 * 64 * facts.hidden),  # hidden states
    ):
        config = SDSJob.model_validate({**SMALL, **values})
        assert requirements(config).disk.bytes == whole + more
    monkeypatch.setattr("jobs.limits.shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with refusal("until", "6 stages", error=ConfigError):
        check_and_estimate("sds", SMALL)


def test_the_disk_estimate_holds(wait: Wait) -> None:
    job = submit("sds", SMALL, HOST)
    wait(job.id, when=lambda: any(work_folder(job.run).glob("second-0002")))
    stored_bytes = sum(f.stat().st_size for f in work_folder(job.run).rglob("*.safetensors"))
    facts = inspect("toy")
    expected = requirements(SDSJob.model_validate(SMALL)).disk.bytes - 2 * facts.parameters
    assert stored_bytes == pytest.approx(expected, rel=0.05)
