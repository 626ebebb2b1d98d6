"""Tests of configs that each kind rejects before a run is queued."""

from pathlib import Path

import pytest

from backend.errors import ConfigError, DatasetError, ModelError, SlimscopeError
from backend.store import queries
from jobs.submit import submit
from tests.jobs.kinds import test_amphista, test_benchmark_kind, test_dlqat, test_profile, test_sds
from tests.queue.conftest import HOST
from tests.refusals import refusal

CONFIGS = {
    "sds": test_sds.SMALL,
    "dlqat": test_dlqat.SMALL,
    "amphista": test_amphista.SMALL,
    "benchmark": test_benchmark_kind.SMALL,
    "evaluation": {"model": "toy"},
    "profile": test_profile.SMALL,
}
REFUSED = [  # kind, changed values, error, the field it names, and what it says
    ("sds", {"pattern": "3:5"}, ConfigError, "pattern", ""),
    ("sds", {"pattern": "two"}, ConfigError, "pattern", ""),
    ("sds", {"context": 4096}, ConfigError, "context", ""),
    ("sds", {"context": 8}, ConfigError, "context", ""),
    ("sds", {"segments": 0}, ConfigError, "segments", ""),
    ("sds", {"base": "guess"}, ConfigError, "base", ""),
    ("sds", {"speed": 9}, ConfigError, "speed", ""),
    ("sds", {"exclude": "down_proj"}, ConfigError, "exclude", ""),
    ("sds", {"overrides": "mlp.*=5:9"}, ConfigError, "overrides", ""),
    ("sds", {"overrides": "mlp.*"}, ConfigError, "overrides", ""),
    ("sds", {"allocation": "owl"}, ConfigError, "allocation", ""),
    (
        "sds",
        {"weights": "streamed", "calibration_text": "self"},
        ConfigError,
        "calibration_text",
        "",
    ),
    ("sds", {"model": "/etc"}, ModelError, "model", ""),
    ("sds", {"model": "nobody/nothing"}, ModelError, "model", ""),
    ("sds", {"calibration_text": "file:../../etc/passwd"}, DatasetError, "calibration_text", ""),
    ("sds", {"evaluation_text": "self"}, DatasetError, "evaluation_text", ""),
    ("dlqat", {"group_size": 128}, ConfigError, "group_size", "Choose 8, 16, 32, 64, or 0"),
    ("dlqat", {"bits": 1}, ConfigError, "bits", "2 or more"),
    ("dlqat", {"bits": 9}, ConfigError, "bits", "8 or less"),
    ("dlqat", {"rank": 0, "stages": "lora-only"}, ConfigError, "rank", "train"),
    ("dlqat", {"stages": ""}, ConfigError, "stages", "The run would make no model"),
    ("dlqat", {"stages": "dlqat, gptq-4"}, ConfigError, "stages", "It must be 'rtn', "),
    ("dlqat", {"length": 4096}, ConfigError, "length", "256"),
    ("dlqat", {"exclude": "attention.*"}, ConfigError, "exclude", "attention"),
    (
        "dlqat",
        {"format": "gptq", "bits": 5},
        ConfigError,
        "format",
        "compressed-tensors, slimscope or dense",
    ),
    ("dlqat", {"format": "gptq", "grid": "zero-point"}, ConfigError, "format", "gptq_v2"),
    (
        "dlqat",
        {"grid": "offset", "format": "compressed-tensors"},
        ConfigError,
        "format",
        "slimscope or dense",
    ),
    (
        "dlqat",
        {"embedding": "8"},
        ConfigError,
        "embedding",
        "the grid and the 3 bits of the layers",
    ),
    ("dlqat", {"embedding": "8", "format": "gptq"}, ConfigError, "embedding", "format slimscope"),
    ("dlqat", {"embedding": "4", "format": "dense"}, ConfigError, "embedding", "Choose dense"),
    ("dlqat", {"embedding": "5"}, ConfigError, "embedding", "'dense', '8', '6' or '4'"),
    (
        "dlqat",
        {"grid": "offset", "format": "slimscope", "keep_zeros": True},
        ConfigError,
        "grid",
        "0",
    ),
    ("dlqat", {"keep_zeros": True, "stages": "rotated"}, ConfigError, "stages", "rotated mixes"),
    ("dlqat", {"start": "block-wise"}, ConfigError, "start", "not among the stages"),
    ("dlqat", {"format": "gptq", "exclude": "0.*"}, ConfigError, "format", "single layers"),
    ("dlqat", {"keep": "hqq"}, ConfigError, "keep", "rtn, gptq, dlqat"),
    ("dlqat", {"keep": "best"}, ConfigError, "keep", ""),
    ("dlqat", {"holdout": 0}, ConfigError, "holdout", "No text is held out"),
    ("dlqat", {"stages": "lora"}, ConfigError, "keep", "cannot be exported"),
    ("dlqat", {"exclude": "a, " * 1001}, ConfigError, "exclude", "1,001 entries; at most 1,000"),
    ("dlqat", {"stages": "awq", "keep": "awq"}, ConfigError, "keep", "dense"),
    ("dlqat", {"training_text": "nothing"}, DatasetError, "training_text", "toystories"),
    ("dlqat", {"training_text": "file:../x.jsonl"}, DatasetError, "training_text", ""),
    ("dlqat", {"evaluation_text": "self"}, DatasetError, "evaluation_text", ""),
    ("dlqat", {"context": 4096}, ConfigError, "context", ""),
    ("dlqat", {"model": "nobody/nothing"}, ModelError, "model", ""),
    ("dlqat", {"speed": 9}, ConfigError, "speed", ""),
    ("amphista", {"heads": 0}, ConfigError, "heads", ""),
    ("amphista", {"heldout": 48}, ConfigError, "heldout", ""),
    ("amphista", {"answer_tokens": 4096}, ConfigError, "answer_tokens", ""),
    (
        "amphista",
        {"architecture": "hydra", "ablation": "encoder only"},
        ConfigError,
        "ablation",
        "",
    ),
    ("amphista", {"speed": 9}, ConfigError, "speed", ""),
    ("amphista", {"model": "nobody/nothing"}, ModelError, "model", ""),
    ("amphista", {"prompts": "file:../../etc/passwd"}, DatasetError, "prompts", ""),
    ("amphista", {"prompts": "unknown"}, DatasetError, "prompts", ""),
    (
        "amphista",
        {"data": "text", "training_text": "file:none.txt"},
        DatasetError,
        "training_text",
        "",
    ),
    ("amphista", {"data": "text", "training_text": "self"}, DatasetError, "training_text", ""),
    ("amphista", {"data": "songs"}, ConfigError, "data", ""),
    ("benchmark", {"drafters": "amphista-0999"}, ConfigError, "drafters", ""),
    ("benchmark", {"drafters": "toy"}, ConfigError, "drafters", ""),
    ("benchmark", {"max_new_tokens": 4096}, ConfigError, "max_new_tokens", ""),
    ("benchmark", {"rounds": 0}, ConfigError, "rounds", ""),
    ("benchmark", {"llama_cpp": "F32, Q9"}, ConfigError, "llama_cpp", ""),
    ("benchmark", {"model": "nobody/nothing"}, ModelError, "model", ""),
    ("benchmark", {"prompts": "file:none.jsonl"}, DatasetError, "prompts", ""),
    ("evaluation", {"model": "sds-0009"}, ConfigError, "model", "no run"),
    ("evaluation", {"model": "count-0001"}, ConfigError, "model", "not saved a model"),
    ("evaluation", {"dense": "smollm2-135m"}, ConfigError, "dense", "was not derived from"),
    ("evaluation", {"context": 100_000}, ConfigError, "context", "does not fit"),
    ("evaluation", {"evaluation_text": "nothing"}, DatasetError, "evaluation_text", "nothing"),
    ("evaluation", {"tasks": "piqa"}, ConfigError, "tasks", "pip install -e"),
    ("evaluation", {"tasks": "../etc"}, ConfigError, "tasks", "task names"),
    ("evaluation", {"tasks": "endings", "context": 64}, ConfigError, "tasks", "too short"),
    ("evaluation", {"batch": 0}, ConfigError, "batch", "Batch size"),
    ("profile", {"formats": "int4-g50", "measured": ""}, ConfigError, "formats", "fits no layer"),
    ("profile", {"formats": "int9-g64"}, ConfigError, "formats", "9 bits are not offered"),
    ("profile", {"formats": ""}, ConfigError, "formats", "0 formats are given"),
    ("profile", {"measured": "70%"}, ConfigError, "measured", "70% is not among the formats"),
    ("profile", {"windows": 9}, ConfigError, "windows", "Only 8 windows are held out"),
    ("profile", {"holdout": 0}, ConfigError, "holdout", "No text is held out"),
    (
        "profile",
        {"calibration_text": "self"},
        ConfigError,
        "calibration_text",
        "text sampled from the model",
    ),
    ("profile", {"context": 4096}, ConfigError, "context", "does not fit"),
]


@pytest.mark.parametrize(("kind", "values", "error", "field", "message"), REFUSED)
def test_bad_input_is_refused_before_it_is_queued(
    queue: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    values: dict,
    error: type[SlimscopeError],
    field: str,
    message: str,
) -> None:
    monkeypatch.setattr("backend.evaluation.tasks.find_spec", lambda _: None)
    submit("count", {}, HOST)
    with refusal(field, message, error=error):
        submit(kind, {**CONFIGS[kind], **values}, HOST)
    assert [job.run for job in queries.jobs()] == ["count-0001"]
