"""Profiles on the Workbench: mixes of typed budgets, facts, offers of a new profile, landmarks; for
hosts and guests, with damaged and hostile input."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from starlette.testclient import TestClient

from backend.budget import Budget
from backend.errors import ConfigError
from backend.live.address import state_at
from backend.queue import gate
from backend.sensitivity.profile import TOKEN_WISE, Format
from backend.settings import Settings
from backend.store import queries
from jobs import pipeline
from jobs.fields.models import resolve_model
from jobs.kind import get_kind
from jobs.operations.live import Effort, planned_steps
from jobs.profile.profiles import (
    CALIBRATION_TOKENS,
    DECODING_TIMES,
    ESTIMATE,
    WEIGHTS_MARK,
    WIDEST_INPUT,
    budget_solver,
    read_profile,
    weights_fingerprint,
)
from tests.queue.conftest import HOST
from tests.ui.conftest import HOSTILE
from tests.ui.lab import job, store
from tests.ui.pages.workbench.profiles import TIMES, profile_rows
from tests.ui.visits import OTHER, TOKEN, Visit, unpacked
from ui.pages.new_run.composition import read_address
from ui.pages.workbench import plans, profiles, tables

FACTS = resolve_model("toy", reads=False).facts
LAYERS = (*FACTS.linears, *FACTS.embeddings)
TIMED = {DECODING_TIMES: TIMES, WEIGHTS_MARK: weights_fingerprint(resolve_model("toy"))}


@pytest.fixture
def client(seeded: Settings, visit: Visit) -> TestClient:
    """profile-0091 has no times, profile-0092 has."""
    parts = [profile_rows(91), profile_rows(92, environment=TIMED)]
    store(*(one for one, _ in parts), *(row for _, rows in parts for row in rows))
    return visit()


def asked(client: TestClient, text: str, **query: str) -> Any:
    return client.get(profiles.BUDGET, params={"run": "profile-0092", "text": text} | query)


def started(client: TestClient, part: str) -> Any:
    """A part of the page's data of the toy."""
    return client.get(tables.START, params={"model": "toy"}).json()[part]


def mix(answer: Any) -> dict[str, Format]:
    names = ("+".join(filter(None, parts)) or "dense" for parts in answer.json()["formats"])
    return dict(zip((x.name for x in LAYERS), map(Format.parse, names), strict=True))


@pytest.mark.parametrize(
    ("text", "front", "method"),
    [
        ("0.2 MB", "pruned", "quantized"),
        ("3.25\u00a0bits", "", "quantized"),
        ("50 %", "quantized", "pruned"),
        ("loss 1.2 ×", "pruned", "pruned"),
        ("loss 20%", "<b>", "quantized"),
        ("4 ms", "quantized", "quantized"),
    ],
)
def test_a_typed_budget_gets_the_mix_of_the_solver(
    client: TestClient, text: str, front: str, method: str
) -> None:
    answer = asked(client, text, front=front)
    assert answer.status_code == 200, answer.text
    budget = Budget.parse(text)
    expected = budget_solver(read_profile("profile-0092"), method).solve(budget)  # type: ignore
    found = mix(answer)
    assert all(found[name] == form for name, form in expected.formats.items())
    assert (answer.json()["unit"], answer.json()["front"]) == (budget.kind, method)
    assert answer.json()["ms"] == pytest.approx(expected.milliseconds)
    named = {part or "dense" for parts in answer.json()["formats"] for part in parts}
    assert answer.json()["parts"].keys() >= named - {"dense"}


def test_pinned_layers_keep_their_format(client: TestClient) -> None:
    state = "~magnitude~rtn~int4-g64_dense~0x1_1x21"
    found = mix(asked(client, "3 bits", state=state, pins="0_5"))
    assert str(found[LAYERS[0].name]) == "int4-g64" and str(found[LAYERS[5].name]) == "dense"
    assert {str(found[x.name]) for x in LAYERS[6:21]} >= {"int2-g64"}


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"text": "0.05MB"}, "Choose 0.11MB or more"),
        ({"text": "99%"}, "Choose 70% or less"),
        ({"text": "300 GB"}, "more than the model takes"),
        ({"text": "<b>"}, "'<b>' is not a budget. Write a size (80 MB)"),
        ({"text": "8" * 10_000}, "is not a budget"),
        ({"text": ""}, "is not a budget"),
        ({"text": "4 ms", "run": "profile-0091"}, "did not measure decoding times"),
        ({"text": "50%", "run": "sds-0001"}, "is no profile"),
        ({"text": "50%", "run": "<b>"}, "is no profile"),
        ({"text": "50%", "pins": "x"}, "pinned layers is damaged"),
        ({"text": "50%", "pins": "0__1"}, "pinned layers is damaged"),
        ({"text": "50%", "pins": "22"}, "pinned layers is damaged"),
        ({"text": "50%", "pins": "_".join("0" * 11_000)}, "pinned layers is damaged"),
        ({"text": "50%", "pins": "0", "state": "~wanda~rtn~4of8_dense~0_1x21"}, "has not measured"),
        ({"text": "50%", "state": "~wanda~rtn~50p~0x"}, "state cannot be opened"),
        ({"text": "50%", "state": "~wanda~rtn~dense~0x9"}, "do not match those of this model"),
    ],
)
def test_a_budget_without_a_mix_is_refused_with_the_reason(
    client: TestClient, query: dict[str, str], said: str
) -> None:
    answer = asked(client, **query)
    assert said in answer.json()["what" if answer.status_code == 404 else "refused"]


def test_guests_see_map_and_front_and_solve_budgets_within_their_limit(
    shared: Visit, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = shared(OTHER)
    run = started(guest, "profile")
    assert started(guest, "live")["why"]
    assert guest.get(profiles.PROFILE, params={"run": run}).status_code == 200
    assert asked(guest, "50%").status_code == 200
    monkeypatch.setattr(gate.previews, "limit", 1)
    assert asked(shared("10.0.0.8"), "50%").status_code == 200
    assert asked(shared("10.0.0.8"), "50%").status_code == 429
    host = shared(OTHER, authorization=f"Bearer {TOKEN}")
    assert [asked(host, "50%").status_code for _ in range(3)] == [200] * 3


def test_fronts_by_time_are_sent_where_the_profile_has_times(client: TestClient) -> None:
    headers = {}
    for run in ("profile-0091", "profile-0092"):
        headers[run], arrays = unpacked(client.get(profiles.PROFILE, params={"run": run}).content)
        assert ("quantized_ms_formats" in arrays) == headers[run]["timed"]
    assert [headers[run]["timed"] for run in sorted(headers)] == [False, True]
    assert list(arrays["pruned_ms_ms"]) == sorted(arrays["pruned_ms_ms"])


def facts(client: TestClient, number: int, **environment: object) -> str:
    """Facts of a newer profile with this record."""
    run, rows = profile_rows(number, environment=environment)
    store(run, *rows)
    found: str = started(client, "known")
    assert f">profile-{number:04d}</a>" in found and "<b>" not in found
    return found


def test_a_profile_tells_its_estimate_and_its_tokens(client: TestClient) -> None:
    text = {"held-out": {"context": 64, "windows": 8}}
    few = {CALIBRATION_TOKENS: 128, WIDEST_INPUT: 384}
    said = facts(client, 93, **{ESTIMATE: TOKEN_WISE, "text": text}, **few)
    for part in (
        "21 of 22 layers in 9 formats",
        "measured in int3-g64 and 50%, else estimated held out",
        "512 held-out tokens in windows of 64",
        "only 128 calibration tokens for 384 inputs",
    ):
        assert part in said
    assert started(client, "text") == [8, 64] and started(client, "offer") is None
    damaged = {ESTIMATE: [1], "text": {"held-out": HOSTILE}, CALIBRATION_TOKENS: "<b>"}
    assert "in sample" in facts(client, 94, **damaged) and started(client, "text") == [0, 0]


def test_an_old_profile_offers_a_new_one(client: TestClient) -> None:
    facts(client, 95, **{WEIGHTS_MARK: "of other weights"})
    assert "measured other weights" in started(client, "notice")
    offer = started(client, "offer")
    assert offer["time"] and not offer["run"] and not offer["why"]


def test_a_model_without_a_profile_offers_one_to_those_who_may_add_runs(shared: Visit) -> None:
    host, guest = shared(OTHER, authorization=f"Bearer {TOKEN}"), shared(OTHER)
    offer = started(host, "offer")
    assert offer["automatic"] and offer["time"] and not offer["why"]
    assert started(guest, "offer")["why"] and not started(guest, "offer")["automatic"]
    store(job(96, kind="profile", state="queued", config={"model": "toy"}))
    assert started(host, "offer")["run"] == "profile-0096"
    assert not started(host, "offer")["automatic"]


def test_files_of_the_same_weights_are_landmarks(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert started(client, "landmarks") == []
    stored = json.loads(Path(profiles.__file__).with_name("landmarks.json").read_text())
    (known,) = stored["models"].values()
    own = {weights_fingerprint(resolve_model("toy")): known}
    monkeypatch.setattr(profiles, "landmarks_file", lambda: stored | {"models": own})
    files = started(client, "landmarks")
    assert [one["file"] for one in files] == ["Q2_K", "Q4_K_M"]
    assert all(one["low"] < one["ratio"] < one["high"] and one["source"] for one in files)


@pytest.mark.parametrize(
    ("formats", "suits"),
    [
        ("int4-g32_dense~0x21_1", {"one-shot", "dlqat"}),
        ("50p_dense~0x21_1", {"one-shot", "sds"}),
        ("2of4andint4-g32_dense~0x21_1", {"one-shot", "sds", "dlqat", "full"}),
        ("dense~0x22", set()),
        ("<b>", set()),
        ("50p~0x", set()),
    ],
)
def test_runs_of_a_state_have_a_cost_or_a_reason(
    client: TestClient, formats: str, suits: set[str]
) -> None:
    state = f"~wanda~rtn~{formats}"
    found = client.get(plans.RUNS, params={"model": "toy", "state": state}).json()
    assert {effort for effort, plan in found.items() if "address" in plan} == suits
    assert all(plan.get("refused") or "about" in plan["cost"] for plan in found.values())
    for effort in suits:
        planned = planned_steps(FACTS, state, effort)
        steps = [{"kind": k, "config": {"model": "toy", **config}} for k, config in planned]
        assert found[effort]["address"] == plans.form_address(steps)


@pytest.mark.parametrize(
    "formats",
    ["int4-g32_int3-g32_dense~1_0x20_2", "50p_2of4_dense~1_0x20_2", "2of4andint4-g32_dense~0x21_1"],
)
def test_the_form_queues_runs_with_the_formats_of_the_state(
    client: TestClient, formats: str
) -> None:
    """Of every effort that suits the state, as its link fills the form."""
    state = f"~wanda~rtn~{formats}"
    wanted = state_at(state, LAYERS).formats
    queued = 0
    for effort in get_args(Effort):
        with suppress(ConfigError):
            steps = [
                {"kind": kind, "config": {"model": "toy", **config}}
                for kind, config in planned_steps(FACTS, state, effort)
            ]
            queued += len(steps)
            made = runs_of_form(plans.form_address(steps))
            assert made == {x.name: str(wanted[x.name]) for x in FACTS.linears}
    assert queued


def runs_of_form(address: str) -> dict[str, str]:
    """Queues what an address of New run composes; layer -> its formats after the last run."""
    composition, unfilled = read_address(address.partition("?")[2])
    assert unfilled == []
    made: dict[str, list[str]] = {layer.name: [] for layer in FACTS.linears}
    for queued in pipeline.queue(pipeline.of_document(composition.document()), HOST):
        plan = get_kind(queued.kind).plan.model_validate(queries.plan(queued.id))
        for layer, form in plan.formats.items():
            made[layer] += [form] * (form != "dense")
    return {layer: "+".join(forms) or "dense" for layer, forms in made.items()}


def test_an_unknown_model_has_no_runs(client: TestClient) -> None:
    answer = client.get(plans.RUNS, params={"model": "<b>", "state": "~wanda~rtn~50p~0x22"})
    assert "address" not in answer.text
