"""Tests of benchmark jobs: figures and verdicts."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from backend.compiler import CompilerError
from backend.decoding.native import model as native
from backend.decoding.native.model import decoding_dtype
from backend.drafters.checkpoint import Amphista, BaseFingerprint, pack
from backend.errors import ConfigError
from backend.models import blocks
from backend.models.sources.catalog import inspect
from backend.store import frames, queries
from backend.store.states import State
from backend.store.tables import Job
from jobs.benchmark.kind import key_figure
from jobs.benchmark.report import (
    COMBINED,
    LOOKUP,
    VANILLA,
    DecoderReport,
    decoder_reports,
    verdicts,
)
from jobs.fields import gguf
from jobs.fields.drafters import available_drafters, drafter_folder, gains_by_path, parse_drafters
from jobs.fields.gguf import LLAMA_CPP
from jobs.metrics import SPEED_UP, TOKENS_PER_SECOND
from jobs.submit import submit
from tests.drafters.toys import base, drafter_of
from tests.queue.conftest import HOST, Wait, change, succeeded
from tests.refusals import refusal

SMALL = {
    "model": "toy",
    "count": 4,
    "max_new_tokens": 16,
    "rounds": 1,
    "threads": 1,
    "precision": "float32",
}
GROWTH = [((0,), 0.5), ((0, 0), 0.25), ((1,), 0.125), ((0, 0, 0), 0.1)]


def trained(kind: str = "amphista", model: str = "toy", **fields: object) -> Job:
    """Store a finished run with an untrained drafter."""
    job = submit("amphista", {"model": model, "answers": 64}, HOST)
    change(Job, job.id, state=State.SUCCEEDED, kind=kind)
    job = queries.job(job.id)
    folder = drafter_folder(job)
    folder.mkdir(parents=True)
    drafter = drafter_of(base(), **fields)
    pack(drafter, BaseFingerprint.of(base(), "toy"), GROWTH, {}, {}, 40).save(folder)
    return job


def finished(wait: Wait, **values: object) -> Job:
    return succeeded(wait, "benchmark", {**SMALL, **values})


def test_all_are_timed_and_write_the_same_text(wait: Wait) -> None:
    amphista, medusa = trained(), trained(architecture="medusa")
    job = finished(wait, drafters=f"{amphista.run}, {medusa.run}", nodes=4)
    assert job.environment["decoder"].startswith("PyTorch; ")  # in float32
    arms = {arm.name: arm for arm in decoder_reports(job.id)}
    assert next(iter(arms)) == VANILLA
    combined = {amphista.run + COMBINED, medusa.run + COMBINED}
    assert set(arms) == {VANILLA, "lookup", amphista.run, medusa.run} | combined
    assert all(arm.same == 1 and arm.prompts == 4 for arm in arms.values())
    assert (arms[VANILLA].accepted, arms[VANILLA].speed_up, arms[VANILLA].break_even) == (1, 1, 1)
    assert arms[amphista.run].nodes == 4 and arms[medusa.run].kind == "Medusa"
    assert arms[amphista.run + COMBINED].label == f"Prompt lookup + Amphista ({amphista.run})"
    assert not any(arms[name].hits for name in combined)  # a tree of which only a part is asked
    assert list(arms[amphista.run].hits) == [(0,), (1,), (0, 0)] and not arms["lookup"].hits
    assert gains_by_path(amphista.run) == dict(GROWTH) and gains_by_path("amphista-0099") == {}
    right = sum(arms[amphista.run].hits.values())
    assert arms[amphista.run].accepted == pytest.approx(1 + right, abs=0.2)  # last passes are cut
    for arm in arms.values():
        assert set(arm.milliseconds) == {"draft", "verify", "accept", "cache"}
        assert arm.tasks and arm.speed > 0
    assert "cost/verify" in {*map(str, frames.by_key(frames.curves(job.id)))}
    sentences = " ".join(verdicts(decoder_reports(job.id)))
    assert sentences.count("All 4 responses match vanilla's") == 5
    results = {str(row.metric): row for row in queries.results([job.id]) if row.stage == "run"}
    fastest = max(arms.values(), key=lambda arm: arm.speed)
    assert results["tokens_per_second"].value == fastest.speed
    assert results["speed_up"].value == fastest.speed_up
    assert results["speed_up"].details == {"of": fastest.label}


def test_pytorch_is_timed_beside_the_native_decoder(wait: Wait) -> None:
    job = finished(wait, precision="bfloat16", pytorch=True, lookup=False, count=1)
    assert job.environment["decoder"].startswith("native")
    arms = decoder_reports(job.id)
    assert [arm.label for arm in arms] == ["Vanilla", "PyTorch loop"]
    read = 2.0 * inspect("toy").weights_per_token  # bfloat16
    figures = {(row.stage, str(row.metric)): row.value for row in queries.results([job.id])}
    assert figures[VANILLA, "bytes_per_token"] == pytest.approx(read, rel=0.01)
    assert "in vanilla decoding" in verdicts(arms)[0]


@pytest.mark.skipif(find_spec(LLAMA_CPP) is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_is_timed_beside_our_decoders(wait: Wait) -> None:
    job = finished(wait, llama_cpp="Q8_0, F32, Q8_0")
    assert job.config["llama_cpp"] == "F32, Q8_0"
    arms = {arm.name: arm for arm in decoder_reports(job.id)}
    assert set(arms) == {VANILLA, "lookup", "llama.cpp F32", "llama.cpp Q8_0"}
    exact = arms["llama.cpp F32"]
    assert exact.same == 1 and exact.accepted == 1 and exact.peer and not exact.drafts
    ours = max(arms[VANILLA].speed, arms["lookup"].speed)
    run_results = {str(row.metric): row for row in queries.results([job.id]) if row.stage == "run"}
    assert run_results["tokens_per_second"].value == ours


def test_llama_cpp_is_refused_if_missing(queue: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gguf, "LLAMA_CPP", "no_such_package")
    with refusal("llama_cpp", "not installed", "pip install", error=ConfigError):
        submit("benchmark", {**SMALL, "llama_cpp": "Q8_0"}, HOST)


def test_auto_decodes_natively_without_bfloat16_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "computes_bfloat16", lambda device: False)
    cpu = torch.device("cpu")
    assert blocks.resolve_dtype("auto", cpu) == "float32"
    assert decoding_dtype("auto", cpu, "LlamaForCausalLM") == "bfloat16"
    assert decoding_dtype("auto", cpu, "GPT2LMHeadModel") == "float32"
    assert decoding_dtype("float32", cpu, "LlamaForCausalLM") == "float32"

    def broken(*_: object) -> None:
        raise CompilerError("no compiler")

    monkeypatch.setattr(native, "kernels", broken)
    assert decoding_dtype("auto", cpu, "LlamaForCausalLM") == "float32"


def test_drafters_that_do_not_fit_are_refused(queue: Path) -> None:
    with refusal("drafters", "has no drafter", error=ConfigError):
        parse_drafters(trained(kind="sds").run, "toy", "drafters")
    drafter = trained()
    with pytest.raises(ConfigError, match="was trained for toy"):
        parse_drafters(drafter.run, "smollm2-135m", "drafters")
    assert [j.run for j in parse_drafters(f" {drafter.run},{drafter.run} ,", "toy", "")] == [
        drafter.run
    ]
    with refusal("nodes", "too large", "5 or fewer", error=ConfigError):
        submit("benchmark", {**SMALL, "drafters": drafter.run, "nodes": 6}, HOST)
    assert [job.run for job in available_drafters()] == [drafter.run]
    assert Amphista.load(drafter_folder(drafter)).growth == GROWTH


# words --------------------------------------------------------------------------------------------


def reports(
    up: float, accepted: float, verify: float, draft: float, same: float = 1.0
) -> list[DecoderReport]:
    """Return reports of vanilla and of one drafter."""
    vanilla = DecoderReport(
        VANILLA, kind="", nodes=8, speed_up=1.0, accepted=1.0, break_even=1.0, same=1.0, prompts=12
    )
    drafter = replace(
        vanilla,
        name="amphista-0007",
        kind="Amphista",
        speed_up=up,
        accepted=accepted,
        break_even=verify + draft,
        same=same,
        first_difference=None if same == 1 else 4,
        ranges={"speed_up": (up - 0.01, up + 0.01)},
        lengths={1: 3, 2: 9},
        milliseconds={"draft": draft, "verify": verify, "accept": 0.0, "cache": 0.0},
    )
    of_vanilla = {"draft": 0.0, "verify": 1.0, "accept": 0.0, "cache": 0.0}
    return [replace(vanilla, milliseconds=of_vanilla), drafter]


@pytest.mark.parametrize(
    ("figures", "message"),
    [
        (
            (1.30, 1.8, 1.2, 0.15),
            "(amphista-0007) is faster than vanilla here: 1.30\u00a0×",
        ),
        ((0.89, 1.2, 1.3, 0.05), "slower than vanilla here: 0.89\u00a0× (0.88 to 0.90)"),
        ((0.89, 1.2, 1.3, 0.05), "extra cost is verification of up to 8 tokens at once."),
        ((0.89, 1.2, 1.05, 0.3), "The largest extra cost is drafting."),
        ((0.80, 1.01, 1.2, 0.05), "Almost no draft tokens are accepted."),
        ((1.01, 1.4, 1.3, 0.1), "does not differ measurably from vanilla here: 1.01\u00a0×"),
        ((1.30, 1.8, 1.2, 0.15), "1.80 tokens per step at 1.35 × the cost of a vanilla step"),
        ((1.30, 1.8, 1.2, 0.15), "(1.20 to verify, 0.15 to draft, 0.00 other)."),
        ((1.30, 1.8, 1.2, 0.15, 0.75), "9 of 12 responses match vanilla's token for token"),
    ],
)
def test_the_words_say_which_term_wins_or_loses(figures: tuple, message: str) -> None:
    (sentence,) = verdicts(reports(*figures))
    assert message in sentence


@pytest.mark.parametrize(
    ("fastest", "rival"), [("head", "; prompt lookup alone 1.20\u00a0×."), (LOOKUP, "without.")]
)
def test_a_drafter_is_told_beside_prompt_lookup_alone(fastest: str, rival: str) -> None:
    speeds = {VANILLA: 50.0, fastest: 62.0, "run": 62.0}
    values = {(stage, TOKENS_PER_SECOND): speed for stage, speed in speeds.items()}
    figure = key_figure(values | {("run", SPEED_UP): 1.24, (LOOKUP, SPEED_UP): 1.2})
    assert figure is not None and figure.text.endswith(rival)


def test_a_busy_machine_is_reported() -> None:
    def warnings(low: float, high: float) -> list[str]:
        compared = reports(1.30, 1.8, 1.2, 0.15)
        compared[0].ranges["tokens_per_second"] = low, high
        return verdicts(compared)[1:]

    assert warnings(28, 30) == []
    assert "vanilla decoding varied from 20 to 30 tokens/s" in warnings(20, 30)[0]


def test_a_report_is_read_as_it_was_recorded() -> None:
    written = DecoderReport(
        "amphista-0007",
        "Amphista",
        8,
        30.0,
        1.3,
        1.8,
        1.35,
        0.75,
        12,
        4,
        ranges={"speed_up": (1.2, 1.4)},
        lengths={1: 3, 2: 9},
        hits={(0,): 0.5, (0, 1): 0.25},
        milliseconds={"verify": 20.0},
        tasks={"math": (1.4, 1.9)},
    )
    assert DecoderReport.from_record(json.loads(json.dumps(written.record()))) == written
