"""Tests of DL-QAT jobs on the toy model: their records and files."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from backend.errors import ModelError
from backend.evaluation.perplexity import perplexity as measure
from backend.export.reading import load_dequantized
from backend.models.facts import ModelFacts
from backend.models.loading import load
from backend.models.memory import DeviceMemory
from backend.models.sources.catalog import inspect
from backend.quantization.config import STAGE_LABELS, DLQATStage
from backend.quantization.plan import QuantizationPlan, plan
from backend.queue.artifacts import run_folder, work_folder
from backend.store import frames, queries
from backend.store.states import State
from backend.store.tables import Job
from backend.text.slices import evaluation_slice
from jobs.dlqat.kind import DLQATJob, memory_bytes, training_bytes, verdict, work
from jobs.imported import validate_plan
from jobs.operations.runs import _run_text
from jobs.record import record, tensors
from jobs.submit import check_and_estimate, submit
from jobs.wording import StageComparison
from tests.conftest import ALL
from tests.jobs.kinds.conftest import Reload
from tests.queue.conftest import HOST, Wait, change, succeeded
from tests.refusals import refusal

SMALL = {
    "model": "toy",
    "segments": 4,
    "context": 64,
    "windows": 4,
    "group_size": 32,
    "rank": 4,
    "steps": 4,
    "batch": 2,
    "length": 32,
    "threads": 1,
    "precision": "float32",
    "evaluation_precision": "float32",
    "sample_tokens": 4,
    "stages": ["rtn", "gptq", "dlqat"],
    "packed": False,
    "format": "compressed-tensors",
}


def finished(wait: Wait, **values: object) -> Job:
    return succeeded(wait, "dlqat", {**SMALL, **values})


def figures(job: Job, metric: str) -> dict[str, float]:
    return {r.stage: r.value for r in queries.results([job.id]) if str(r.metric) == metric}


def test_the_whole_run_and_what_it_leaves(wait: Wait, reloaded: Reload) -> None:
    job = finished(wait, stages="rtn, gptq, dlqat, dlqat-kd, lora", packed=True)
    run_record = record(job.run)
    perplexity = figures(job, "perplexity")
    assert set(perplexity) == {"dense", "rtn", "gptq", "dlqat", "dlqat-kd", "lora"}
    read = {r["rounded"] for r in run_record["results"] if r["metric"] == "perplexity"}
    assert read == {"float16"}
    assert set(figures(job, "relative_error")) == set(perplexity) - {"dense"}
    assert figures(job, "bits_per_weight")["dlqat"] == 3.5
    trained = figures(job, "parameters")
    assert trained["lora"] < trained["dlqat"] == trained["dlqat-kd"]
    kept_stage, reason = run_record["kept_stage"], run_record["kept_reason"]
    heldout = figures(job, "heldout_loss")
    assert heldout.keys() == perplexity.keys() - {"dense"}
    assert f"Kept: {STAGE_LABELS[kept_stage]}" in reason and reason in _run_text(run_record)
    texts = run_record["environment"]["text"]
    assert (texts["held-out"]["windows"], texts["training"]["corpus"]) == (8, "toystories")
    assert {"kl_to_dense", "top1_agreement"} <= {
        r["metric"] for r in run_record["results"] if r["stage"] == kept_stage
    }
    assert len(tensors(job.run)) == 21 * 6
    names = {*map(str, frames.by_key(frames.curves(job.id)))}
    assert {"loss@dlqat", "rate@dlqat", "changed@dlqat", "m/p50@dlqat", "loss@lora"} <= names
    profiles = frames.profile_names(job.id)
    assert set(profiles[profiles["name"] == "magnitude"]["step"]) == {*range(5)}
    assert reloaded(job.run, 4)["perplexity"] == pytest.approx(perplexity[kept_stage], rel=1e-5)
    assert figures(job, "bytes/compressed-tensors")[kept_stage] > 0
    assert figures(job, "tokens_per_second").keys() == {"dense", kept_stage}
    card = (run_folder(job.run) / "model" / "README.md").read_text()
    assert f"| DL-QAT | {perplexity['dlqat']:.3f} |" in card and job.run in card
    assert not work_folder(job.run).exists()  # checkpoints are gone once they are not needed


def test_the_embedding_that_is_measured_is_the_one_that_is_saved(wait: Wait) -> None:
    """LoRA is judged on held-out texts, too, which the native decoder reads in bfloat16: it does
    not support low-rank branches."""
    values = {"stages": "rtn, lora", "bits": 4, "format": "slimscope", "precision": "bfloat16"}
    plain = finished(wait, **values, steps=1, embedding="dense")
    without = figures(plain, "perplexity")
    assert without.keys() - {"dense"} == figures(plain, "heldout_loss").keys() == {"rtn", "lora"}
    text = evaluation_slice("toystories", load("toy").tokenizer, SMALL["windows"], 64)
    for bits in ("8", "4") if ALL else ("4",):
        job = finished(wait, **values, steps=1, embedding=bits)
        perplexity, folder = figures(job, "perplexity"), run_folder(job.run) / "model"
        measured = measure(load_dequantized(folder, torch.float32), text, 4).value
        assert measured == pytest.approx(perplexity["rtn"], rel=1e-6)
        (size,) = figures(job, "bytes/slimscope").values()
        assert job.environment["predicted_bytes"] == pytest.approx(size, rel=0.02)
        assert record(job.run)["size_after_bytes"] == pytest.approx(size, rel=0.02)
        assert perplexity["dense"] == without["dense"] and perplexity["lora"] == without["lora"]
        assert perplexity["rtn"] != without["rtn"]
        assert figures(plain, "bytes/slimscope")["rtn"] > size


def test_a_large_embedding_is_saved_in_8_bits_unless_asked(queue: Path) -> None:
    config, cost = check_and_estimate("dlqat", SMALL | {"format": "auto"})
    plan = cost.plan.model_dump(mode="json")
    assert (cost.plan.format, cost.plan.embedding.bits) == ("slimscope", 8)
    assert validate_plan(QuantizationPlan, config, plan) == plan
    _, stored = check_and_estimate("dlqat", SMALL | {"format": "auto", "embedding": "dense"})
    assert stored.plan.format == "compressed-tensors" and stored.plan.embedding is None
    assert cost.size_after_bytes < stored.size_after_bytes
    with pytest.raises(ValueError, match="format of the plan"):
        validate_plan(QuantizationPlan, config.model_copy(update={"format": "gptq"}), plan)


def test_instructions_and_another_format(wait: Wait, texts: Path) -> None:
    lines = [{"instruction": f"Tell of dog {n}.", "output": f"Dog {n} ran."} for n in range(80)]
    (texts / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    job = finished(
        wait,
        training_text="file:asked.jsonl",
        format="gptq_v2",
        grid="zero-point",
        stages="rtn, dlqat",
        start="rounded",
        checkpointing=True,
        keep="rtn",
        length=128,
    )
    assert job.environment["text"]["training"]["corpus"] == "file:asked.jsonl"
    assert job.kept_stage == "rtn" and "Kept: RTN, min-max, as" in job.kept_reason
    config = json.loads((run_folder(job.run) / "model" / "config.json").read_text())
    assert config["quantization_config"]["checkpoint_format"] == "gptq_v2"


def test_training_text_that_is_too_short_is_said_by_the_run(wait: Wait, texts: Path) -> None:
    (texts / "short.txt").write_text("The dog ran home. " * 30)
    job = submit("dlqat", {**SMALL, "training_text": "file:short.txt", "batch": 64}, HOST)
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.FAILED
    assert "too little text to train on" in json.dumps(queries.job(job.id).error)


def made(**values: object) -> tuple[DLQATJob, QuantizationPlan, ModelFacts]:
    """Return a config, its plan for the toy model, and the facts of the toy model."""
    config, facts = DLQATJob.model_validate({**SMALL, **values}), inspect("toy")
    return config, plan(config, facts, config.format), facts


def test_training_that_does_not_fit_says_what_to_lower(queue: Path, monkeypatch) -> None:
    host = DeviceMemory("cpu", 10**12, 10**12)
    _, small = memory_bytes(*made(), host, "float32")
    enough = sum(small.values()) + 10**6
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: enough)
    check_and_estimate("dlqat", SMALL)
    with refusal("batch", "Lower the batch size", error=ModelError):
        check_and_estimate("dlqat", {**SMALL, "batch": 512})
    configs = (made(checkpointing=True), made(), made(stages="dlqat, dlqat-kd"))
    sizes = [training_bytes(config, facts, host) for config, _, facts in configs]
    assert sizes[0] < sizes[1] < sizes[2]  # the last has the logits of the teacher, too


def test_a_model_that_does_not_fit_is_streamed_unless_training_needs_its_weights() -> None:
    host = DeviceMemory("cpu", 10**12, 10**12)
    for stages, is_streamed in (("gptq, dlqat", True), ("gptq, dlqat-kd", False)):
        streamed, whole = memory_bytes(*made(stages=stages), host, "float32")
        assert not streamed
        tight = replace(host, free=sum(whole.values()))
        streamed, needed = memory_bytes(*made(stages=stages), tight, "float32")
        assert streamed is is_streamed
        saved = sum(whole.values()) - sum(needed.values())
        assert saved == 4 * inspect("toy").linear_weights * 2 // 3 * is_streamed  # all but a block


def test_every_part_of_the_work_is_a_phase_and_costs_something() -> None:
    stages = [stage for stage in DLQATStage if stage != "dense"]
    amounts = Counter[str]()
    for phase_work in work(*made(stages=stages, packed=True)):
        amounts[phase_work.phase] += phase_work.amount
    assert min(amounts.values()) > 0 and {f"make {stage}" for stage in stages} <= {*amounts}


def test_a_run_does_what_its_plan_says_of_each_layer(wait: Wait, queue: Path) -> None:
    """Bits and groups follow the plan, even if the config differs."""
    job = submit("dlqat", {**SMALL, "stages": "rtn", "format": "dense"}, HOST)
    plan = queries.plan(job.id)
    (group,) = plan["groups"]
    half = len(group["layers"]) // 2
    changed_group = {**group, "bits": 8, "group_size": 16, "layers": group["layers"][:half]}
    groups = [changed_group, {**group, "layers": group["layers"][half:]}]
    change(Job, job.id, plan={**plan, "groups": groups})
    assert wait(job.id, State.SUCCEEDED, State.FAILED) == State.SUCCEEDED, queries.job(job.id).error
    bits = figures(queries.job(job.id), "bits_per_weight")["rtn"]
    errors = {
        row["tensor"].removesuffix(".weight"): row["relative_error"]
        for row in tensors(job.run)
        if row["stage"] == "rtn"
    }
    assert 4 < bits < 9 and bits != 3.5
    assert max(errors[name] for name in changed_group["layers"]) < 0.001
    assert min(errors[name] for name in group["layers"][half:]) > 0.001


@pytest.mark.parametrize(
    ("perplexity", "message"),
    [
        ({"dlqat": 20.0, "gptq": 40.0}, "DL-QAT has a perplexity 50.0 % lower than GPTQ."),
        (
            {"dlqat": 20.0, "gptq": 40.0, "lora-gptq": 25.0, "lora": 16.0},
            "50.0 % lower than GPTQ and 20.0 % lower than LoRA, then GPTQ. The same training "
            "without quantization reaches 16.00: rounding raises it by 25.0 %.",
        ),
        ({"gptq": 40.0}, ""),
        ({"dlqat": 20.0, "gptq": 40.0, "awq": 25.0, "gptq-order": 30.0}, "20.0 % lower than AWQ."),
        ({"dlqat": 20.0, "gptq": 40.0, "block-wise": 25.0}, "20.0 % lower than block-wise"),
    ],
)
def test_the_verdict_in_words(perplexity: dict, message: str) -> None:
    sentence = verdict(StageComparison(perplexity))
    assert message in sentence and bool(sentence) == bool(message)


@pytest.mark.parametrize(
    ("values", "candidates"),
    [
        ({"stages": "hqq, awq"}, ["hqq"]),
        ({"stages": "awq, lora-gptq"}, ["lora-gptq"]),
        ({"stages": "awq, rtn", "format": "dense"}, ["rtn", "awq"]),
        ({"stages": "dlqat, gptq, lora, m-only"}, ["gptq", "m-only", "dlqat"]),
        ({"stages": "dlqat, gptq", "keep": "gptq"}, ["gptq"]),
    ],
)
def test_what_can_be_kept_is_what_the_format_can_hold(values: dict, candidates: list[str]) -> None:
    assert DLQATJob.model_validate({**SMALL, **values}).candidates == candidates
