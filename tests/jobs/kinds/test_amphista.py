"""Tests of drafter training jobs: their records and files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from backend.drafters.checkpoint import Amphista
from backend.drafters.config import ARMS, GENERATION_BATCH
from backend.drafters.generate import generate
from backend.drafters.training.loss import NODES
from backend.errors import ModelError
from backend.models.loading import load
from backend.models.sources.catalog import inspect
from backend.models.sources.spec import TOY_FOLDER
from backend.queue.artifacts import run_folder, work_folder
from backend.store import frames, queries
from backend.store.tables import Job
from backend.text.prompts import BUILT_IN, SELF, STORIES
from jobs.amphista.kind import (
    AmphistaJob,
    cache_bytes,
    cached_values,
    drafter_weights,
    mask_bytes,
    memory_bytes,
    prompt_sets,
    work,
)
from jobs.metrics import metric
from jobs.reproduction import compare
from jobs.submit import check_and_estimate
from tests.drafters.toys import base, drafter_of
from tests.queue.conftest import Wait, succeeded
from tests.refusals import refusal

SMALL = {
    "model": "toy",
    "answers": 48,
    "heldout": 16,
    "answer_tokens": 24,
    "minutes": 0,
    "steps": 24,
    "batch": 4,
    "threads": 1,
    "precision": "float32",
    "draft_vocabulary": 256,
}


def finished(wait: Wait, **values: object) -> Job:
    return succeeded(wait, "amphista", {**SMALL, **values})


def values(job: Job) -> dict[tuple[str, str], float]:
    """Return all figures that are not measured times or speeds."""
    rows = queries.results([job.id])
    return {(r.stage, r.metric): r.value for r in rows if not metric(r.metric).timed}


def test_a_run_leaves_a_drafter_that_decodes(wait: Wait) -> None:
    job = finished(wait)
    results = {(r.stage, str(r.metric)): r for r in queries.results([job.id])}
    top = [results[f"head-{k}", "top1"].value for k in (1, 2, 3, 4)]
    assert 1 > top[0] > 0.1 and top[0] == max(top)
    assert results["head-1", "chained"].value == top[0]
    assert results["drafter", "predicted_length"].value >= 1
    assert results["drafter", "steps"].value == 24
    (training,) = queries.step_times([job.id])
    assert training.step == "training" and training.seconds > 0
    assert job.flops and job.timed_seconds == 0  # the steps were given, not the minutes
    assert results["drafter", "accepted_length"].value >= 1
    assert results["drafter", "accepted_length"].details["nodes"] == NODES
    assert {*map(str, frames.by_key(frames.curves(job.id)))} >= {
        "loss",
        "top1@head-1",
        "top5@head-4",
        "chained@head-2",
        "accepted",
        "cost/verify",
        "cost/break even",
        "tree/accepted",
        "tree/speed-up",
    }
    (artifact,) = queries.artifacts(job.run)
    assert artifact.kind == "drafter" and artifact.sha256 == job.environment["weights_sha256"]
    assert not work_folder(job.run).exists()
    drafter, model = Amphista.load(run_folder(job.run) / "drafter"), load("toy").model
    assert drafter.arm == "Amphista" and drafter.base.name == "toy"
    plain, drafted = (
        [token.id for token in generate(model, side, [5, 17, 40], 40, nodes=6)]
        for side in (None, drafter)
    )
    assert plain == drafted


def test_medusa_learns_from_text_and_has_the_terms_of_its_base(wait: Wait, queue: Path) -> None:
    folder = queue / "models" / "base"
    shutil.copytree(TOY_FOLDER, folder)
    (folder / "NOTICE").write_text("Terms of the base.")
    text = {"data": "text", "training_text": "toystories", "architecture": "medusa"}
    job = finished(wait, model=str(folder), answer_tokens=32, steps=12, answers=30, **text)
    drafter = run_folder(job.run) / "drafter"
    assert (drafter / "NOTICE").read_text() == "Terms of the base."
    assert Amphista.load(drafter).arm == "Medusa"
    assert job.environment["text"]["training"]["corpus"] == "toystories"
    _, estimate = check_and_estimate("amphista", {**SMALL, "data": "text"})
    assert "predict the base model's responses less well" in estimate.warnings[0]


def test_a_model_of_chats_asks_itself_as_well() -> None:
    config = AmphistaJob.model_validate({"model": "smollm2-135m"})
    toy = inspect("toy")
    chats = replace(toy, default_text="wikipedia")
    assert prompt_sets(config, chats) == (BUILT_IN, SELF)
    assert prompt_sets(config, toy) == (STORIES,)
    built_in = config.model_copy(update={"prompts": BUILT_IN})
    assert prompt_sets(built_in, chats) == (BUILT_IN,)


def test_a_base_can_ask_all_prompts_itself(wait: Wait) -> None:
    job = finished(wait, prompts=SELF, answers=24, heldout=8, answer_tokens=16, steps=4)
    facts = job.environment["text"]["prompts"]
    assert (facts["corpus"], facts["count"]) == (SELF, 24)
    assert compare(job.id, job.id).outcome == "equal"


def test_answers_that_do_not_fit_into_memory_are_refused(
    queue: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.models.memory.memory_available", lambda: 10**9)
    config = {"model": "smollm2-135m", "answer_tokens": 8000}
    with refusal("answer_tokens", "the answers generated at once", error=ModelError):
        check_and_estimate("amphista", config)
    facts = inspect("smollm2-135m")
    assert cached_values(facts) == facts.blocks * 2 * 192


def test_the_memory_for_long_prompts_of_a_file_is_counted(texts: Path) -> None:
    facts = inspect("smollm2-135m")
    needed = []
    for name, words in (("short", 300), ("long", 1500), ("endless", 10**5)):
        (texts / f"{name}.jsonl").write_text(json.dumps({"text": "word " * words}))
        config = AmphistaJob(model="smollm2-135m", prompts=f"file:{name}.jsonl")
        needed.append(sum(memory_bytes(config, facts).values()))
    row = 4 * GENERATION_BATCH * (cached_values(facts) + facts.hidden)
    assert needed[1] - needed[0] == row * (5 * 1500 - 5 * 300) // 2
    assert needed[2] - needed[0] == row * (facts.context - 5 * 300 // 2 - 64 - 128)


@pytest.mark.parametrize("shape", [*ARMS.values(), {"heads": 2}])
def test_the_size_of_a_drafter_is_known_beforehand(shape: dict) -> None:
    config = AmphistaJob.model_validate({**SMALL, **shape})
    estimated = drafter_weights(config, inspect("toy"))
    assert estimated == pytest.approx(drafter_of(base(), **shape).parameter_count(), rel=0.1)


def test_disk_and_time_are_estimated(queue: Path) -> None:
    config, estimate = check_and_estimate("amphista", {**SMALL, "minutes": 7})
    facts = inspect("toy")
    assert 420 < estimate.seconds < 600
    asking = config.model_copy(update={"prompts": SELF})
    plain, mixed = ({x.phase: x.amount for x in work(c, facts)} for c in (config, asking))
    assert set(plain) == {"ask", "data", "train", "measure"}
    assert mixed["ask"] > plain["ask"] == 0
    tokens = 48 * (24 + 64)
    assert cache_bytes(config, facts) == tokens * (2 * facts.hidden + 12)


def test_the_masks_of_blocks_of_guesses_are_counted() -> None:
    """8 anchors in 16 tokens with 4 guesses each: 32 x (16 + 32)."""
    eagle = AmphistaJob.model_validate({**SMALL, "heads": 5, "architecture": "eagle"})
    assert mask_bytes(eagle, 16) == 4 * 32 * 48
    assert mask_bytes(eagle.model_copy(update={"architecture": "hydra"}), 16) == 0
