"""Tests of sensitivity profile jobs: records, resuming and rejected configs."""

import numpy as np
import pytest

from backend.errors import ConfigError, NotFoundError, SlimscopeError
from backend.export.formats import read_layout
from backend.files import fingerprint
from backend.models.sources.spec import TOY_FOLDER
from backend.queue.artifacts import run_folder
from backend.sensitivity.profile import IN_SAMPLE, TOKEN_WISE
from backend.store import queries
from backend.store.tables import Job
from jobs.operations.live import budget
from jobs.profile.kind import ProfileJob, requirements
from jobs.profile.profiles import (
    CALIBRATION_TOKENS,
    WEIGHTS_MARK,
    WIDEST_INPUT,
    newest_profile,
    read_profile,
)
from jobs.submit import submit
from tests.queue.conftest import HOST, Wait, change, succeeded

SMALL = {
    "model": "toy",
    "context": 32,
    "segments": 4,
    "formats": "int2-g64, int4-g64, 50%, 2:4",
    "measured": "int2-g64, 50%",
}


def test_a_profile_is_measured_once_and_answers_budgets(wait: Wait) -> None:
    with pytest.raises(NotFoundError, match="no sensitivity profile of toy"):
        budget("toy", bits="3")
    job = succeeded(wait, "profile", SMALL)
    profile = newest_profile("toy")
    assert profile.run == job.run and len(profile.layers) == 22  # and the embedding
    assert job.environment[WEIGHTS_MARK] == fingerprint(TOY_FOLDER.glob("*.safetensors"))
    assert job.environment[CALIBRATION_TOKENS] == 4 * 32 < 2 * job.environment[WIDEST_INPUT]
    assert profile.estimate == TOKEN_WISE and (profile.figure("fisher")[:-1, :2] > 0).all()
    kl, error = profile.figure("kl"), profile.figure("error")
    layers, embedding = [True, False, True, False, *[False] * 3], [*[False] * 4, *[True] * 3]
    assert sorted(np.isfinite(kl).tolist()) == sorted([layers] * 21 + [embedding])
    assert (kl[np.isfinite(kl)] > 0).all() and (error[np.isfinite(error)] > 0).all()
    inside = [layer.block >= 0 for layer in profile.layers]
    assert (error[inside, 0] > error[inside, 1]).all()  # 2 bits and 4
    results = {str(r.metric): r.value for r in queries.results([job.id])}
    assert results["rank_correlation/fisher"] > 0.6
    assert profile.times and {*profile.times.layers} >= {"dense", "int2-g64", "int4-g64", "50%"}
    assert profile.times.head["dense"] == 0 and min(profile.times.layers.values()) > 0
    with pytest.raises(ConfigError, match=r"Choose [\d.]+ms or more") as refused:
        budget("toy", ms="0.001")
    least = refused.value.do.partition("ms")[0].rpartition(" ")[2]
    assert budget("toy", ms=least)["milliseconds"] <= float(least) * (1 + 1e-6)
    answer = budget("toy", bits="3.25", pin="0.mlp.down_proj=int4-g64")
    assert answer["bits"] <= 3.25 and answer["estimate"] == TOKEN_WISE
    assert answer["layers"]["model.layers.0.mlp.down_proj"] == "int4-g64"
    assert answer["command"].endswith("'budget:3.25bits' --overrides 0.mlp.down_proj=int4-g64")
    assert {*answer["formats"]} <= {"int2-g64", "int4-g64", "dense"}
    assert budget("toy", sparsity="40%")["sparsity"] >= 0.4
    assert 3.0 < budget("toy", bits="3.1")["bits"] <= 3.1  # between two formats
    absent = {"model": "toy", "allocation": "budget:3bits", "overrides": "mlp.no_proj=int4-g64"}
    with pytest.raises(ConfigError, match=r"no_proj"):
        submit("dlqat", absent, HOST)
    small = budget("toy", size="150KB")
    assert small["bytes"] <= 150e3 and small["layers"]["model.embed_tokens"].endswith("-g32")
    for wrong in ({}, {"bits": "3", "size": "1MB"}, {"bits": "x"}, {"bits": "3", "pin": "no=50%"}):
        with pytest.raises(ConfigError):
            budget("toy", **wrong)
    change(Job, job.id, environment={})  # as profiles had it that were in sample
    assert budget("toy", bits="3.25")["estimate"] == IN_SAMPLE
    change(Job, job.id, environment={WEIGHTS_MARK: "of other weights"})
    with pytest.raises(ConfigError, match=f"toy has changed.*{job.run} measured other"):
        budget("toy", bits="3.25")
    change(Job, job.id, config=job.config | {"model": "smollm2-135m"})
    with pytest.raises(NotFoundError, match="no sensitivity profile of toy"):
        budget("toy", bits="3.25")  # the profile is of another model


def test_runs_take_the_mix_of_a_budget(wait: Wait) -> None:
    """Each method turns a budget into a plan."""
    succeeded(wait, "profile", SMALL | {"measured": ""})
    pruned = queries.plan(submit("sds", {"model": "toy", "allocation": "budget:40%"}, HOST).id)
    assert pruned and {"50%", "2:4"} >= {group["pattern"] for group in pruned["groups"]}
    config = {
        "model": "toy",
        "allocation": "budget:3bits",
        "packed": False,
        "stages": "gptq",
        "overrides": "mlp.down_proj=int4-g64",
        "context": 32,
        "segments": 4,
        "windows": 4,
        "sample_tokens": 0,
    }
    job = succeeded(wait, "dlqat", config)
    quantized = queries.plan(job.id)
    layout = read_layout(run_folder(job.run) / "model")
    assert {layout.of(f"model.layers.{b}.mlp.down_proj").bits for b in range(3)} == {4}
    assert {width.bits for width in layout.linears} == {2, 4}
    succeeded(wait, "gguf", {"model": job.run})
    groups = {group["bits"]: group["layers"] for group in quantized["groups"]}
    assert {*groups} == {2, 4} and sum("down_proj" in name for name in groups[4]) == 3
    lines = [f"{name}=int{bits}-g64" for bits, names in groups.items() for name in names]
    overridden = config | {"allocation": "uniform", "overrides": ",".join(lines)}
    assert queries.plan(submit("dlqat", overridden, HOST).id) == quantized  # a map from a file
    for kind, allocation, message in (
        ("sds", "budget:3bits", "not apply to pruned layers"),
        ("dlqat", "budget:50%", "not apply to quantized layers"),
        ("sds", "budget:90%", "No mix of formats satisfies"),
        ("sds", "best", "not an allocation"),
    ):
        with pytest.raises(SlimscopeError, match=message):
            submit(kind, {"model": "toy", "allocation": allocation}, HOST)
    plain = {"model": "toy", "allocation": "budget:3bits"}  # with the defaults of the form
    assert queries.plan(submit("dlqat", plain, HOST).id)


@pytest.mark.parametrize(("segments", "few"), [(4, True), (64, False)])
def test_few_calibration_tokens_are_warned_of(segments: int, few: bool) -> None:
    config = ProfileJob.model_validate(SMALL | {"segments": segments})
    warnings = " ".join(requirements(config).warnings)
    assert (f"{32 * segments} calibration tokens are few" in warnings) == few


def test_other_runs_are_no_profiles(queue: object) -> None:
    statistics = submit("statistics", {"model": "toy"}, HOST)
    with pytest.raises(ConfigError, match="is not a sensitivity profile"):
        read_profile(statistics.run)
    waiting = submit("profile", SMALL, HOST)
    with pytest.raises(ConfigError, match="has measured no layer yet"):
        read_profile(waiting.run)
