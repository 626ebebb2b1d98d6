"""Tests of models that decode: catalog models and saved models, including packed weights."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from sqlalchemy import delete

from backend.errors import ConfigError, ModelError, SlimscopeError
from backend.export.formats import Layout
from backend.export.writing import export
from backend.models.blocks import block_linears, decoder_blocks
from backend.models.loading import LoadedModel, load
from backend.models.saving import save
from backend.models.sources.catalog import inspect
from backend.quantization.grid import QuantizedWeight
from backend.quantization.range_search import search_range
from backend.queue.artifacts import run_folder
from backend.store import queries
from backend.store.session import now_ms, writing
from backend.store.states import State
from backend.store.tables import Artifact, Job
from jobs.chat import ask
from jobs.fields.models import resolve_model
from jobs.runtime.loading import load_decoding, load_whole
from jobs.submit import check_and_estimate, submit
from tests.jobs.serving.answers import answer
from tests.models.sources.test_quantized import packed_toy
from tests.queue.conftest import HOST, Wait, change, succeeded
from tests.refusals import refusal

ASKED = {"prompt": "One day a cat", "max_new_tokens": 12}


def saved(kind: str, bits: int = 0) -> str:
    """Store a finished run with the saved toy model, quantized if `bits` is given."""
    job = submit("amphista", {"model": "toy", "answers": 64}, HOST)
    change(Job, job.id, kind=kind, state=State.SUCCEEDED)
    run, toy = queries.job(job.id).run, load("toy")
    with writing() as session:
        artifact = {"kind": "model", "path": f"{run}/model", "bytes": 1, "created_at": now_ms()}
        session.add(Artifact(job_id=job.id, **artifact))
    folder = run_folder(run) / "model"
    folder.mkdir(parents=True)
    if not bits:
        save(toy.model, toy.tokenizer, folder, "# card")
        return run
    layers = {}
    for block in range(len(decoder_blocks(toy.model))):
        for linear in block_linears(toy.model, block).values():
            grid = search_range(linear.read(), bits, 32, "symmetric", "mse")
            layers[linear.name] = QuantizedWeight(grid, grid.codes(linear.read()).to(torch.uint8))
    layout = Layout("compressed-tensors", bits, 32, True)
    export(toy.model, toy.tokenizer, layers, layout, torch.float16, folder, "# card")
    return run


@pytest.mark.parametrize("load_it", [load_whole, load_decoding])
def test_packed_weights_under_a_wrong_config_are_refused(
    queue: Path, load_it: Callable[..., LoadedModel]
) -> None:
    """Packed weights have another loader than dense weights, but the same checks."""
    folder = queue / "models" / "packed"
    packed_toy(folder, Layout("compressed-tensors", 4, 32, "symmetric"))
    arguments = (
        "cpu",
        torch.float32,
        SimpleNamespace(log=print, record_environment=lambda **_: None),
    )
    assert load_it(resolve_model(str(folder)), *arguments)
    config = json.loads((folder / "config.json").read_text())
    for changed, message in (
        ({"rms_norm_eps": -1.0}, "not finite"),
        ({"model_type": "none such"}, "transformers cannot read it"),
    ):
        (folder / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(ModelError, match=message):
            load_it(resolve_model(str(folder)), *arguments)


def test_a_base_is_known_by_its_run_or_its_name(queue: Path) -> None:
    plain, packed = saved("sds"), saved("dlqat", bits=4)
    packed_id = queries.job(packed).id
    assert resolve_model("toy").source == "toy" and not resolve_model("toy").packed
    assert resolve_model(plain).source == str(run_folder(plain) / "model")
    assert resolve_model(packed).packed and not resolve_model(plain).packed
    for run in (plain, packed):
        facts, toy = resolve_model(run).facts, inspect("toy")
        assert (facts.linears, facts.title) == (toy.linears, run)
        assert facts.default_text == "toystories"
    with writing() as session:  # what the last one began with was purged, or is not here at all
        session.get_one(Job, packed_id).config = {"model": plain}
        session.execute(delete(Artifact).where(Artifact.job_id == queries.job(plain).id))
    assert resolve_model(packed).facts.default_text == "toystories"
    # imported under the number of what it began with elsewhere
    change(Job, packed_id, config={"model": packed})
    assert resolve_model(packed).facts.default_text == "wikipedia"
    with refusal("sides", "sds-0999", error=ConfigError):
        resolve_model("sds-0999", "sides")


SMALL = {
    "sds": {"segments": 8, "context": 32, "windows": 8, "until": "first", "adjust_steps": 1},
    "dlqat": {
        "segments": 8,
        "context": 32,
        "windows": 8,
        "stages": "rtn",
        "group_size": 32,
        "format": "dense",
    },
    "statistics": {},
    "evaluation": {"windows": 8, "context": 32, "speed": False, "sample_tokens": 0},
}


@pytest.mark.parametrize("kind", ["sds", "statistics", "evaluation"])
def test_a_packed_model_of_a_run_is_a_model_for_every_kind(wait: Wait, kind: str) -> None:
    succeeded(wait, kind, {"model": saved("dlqat", bits=4), "threads": 1, **SMALL[kind]})


@pytest.mark.parametrize("harm", [Path.unlink, lambda file: os.truncate(file, 20)])
def test_a_saved_model_that_is_not_whole_any_more_is_refused(
    queue: Path, harm: Callable[[Path], None]
) -> None:
    run = saved("sds")
    harm(run_folder(run) / "model" / "config.json")
    with refusal("model", "damaged", error=ConfigError):
        check_and_estimate("benchmark", {"model": run})
    with refusal("sides", "damaged", error=ConfigError):
        ask({**ASKED, "sides": run}, False, HOST)


@pytest.mark.parametrize("kind", ["amphista", "benchmark"])
def test_packed_weights_do_not_compute_in_float32(queue: Path, kind: str) -> None:
    run = saved("dlqat", bits=4)
    check_and_estimate(kind, {"model": run})
    ask({**ASKED, "sides": run}, False, HOST)
    with refusal("precision", "do not support float32", error=ConfigError):
        check_and_estimate(kind, {"model": run, "precision": "float32"})
    with refusal("precision", "do not support float32", error=ConfigError):
        ask({**ASKED, "sides": run, "precision": "float32"}, False, HOST)


def test_a_drafter_learns_from_packed_weights_and_decodes_with_them(wait: Wait) -> None:
    base = saved("dlqat", bits=4)
    values = {
        "model": base,
        "minutes": 0,
        "steps": 3,
        "answers": 12,
        "answer_tokens": 24,
        "heldout": 4,
        "batch": 4,
        "threads": 1,
    }
    trained = succeeded(wait, "amphista", values)
    alone, drafted = (answer(side, **ASKED, nodes=2) for side in (base, trained.run))
    assert alone.text and drafted.text[:4] == alone.text[:4]  # in 16 bits near ties may part
    other_run = saved("dlqat", bits=3)
    # as if its base had been trained anew
    change(Job, trained.id, config={**trained.config, "model": other_run})
    with pytest.raises(SlimscopeError, match="belongs to another model"):
        answer(trained.run, **ASKED)
