"""Data of a model for the browser: layers, knobs, profile, weights; and refused requests."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from backend.budget import Budget
from backend.live.address import WORKBENCH, state_at
from backend.models.families.stored import LinearShape
from backend.models.loading import load
from backend.sensitivity.profile import Format
from backend.settings import Settings
from backend.statistics.distribution import scale_of
from backend.statistics.paired import WINDOW_LOSSES
from backend.statistics.tensors import TensorProfile
from backend.store import queries
from backend.store.tables import Job
from jobs.fields.models import resolve_model
from jobs.profile.profiles import budget_solver, read_profile
from jobs.runtime.row_buffer import profile_row
from jobs.submit import check_and_estimate
from tests.ui.lab import job, measured, result, store
from tests.ui.pages.workbench.profiles import FORMATS, profile_rows
from tests.ui.visits import Visit, unpacked
from ui.pages.run.outcome import outcome
from ui.pages.workbench import profiles, tables
from ui.pages.workbench.formats import format_parts, names_of
from ui.runs.results import RunResults, kind_of


@pytest.fixture
def client(seeded: Settings, visit: Visit) -> TestClient:
    """profile-0091 has ended, profile-0092 works on its first block."""
    parts = [profile_rows(91), profile_rows(92, blocks=1, state="running")]
    store(*(one for one, _ in parts), *(row for _, rows in parts for row in rows))
    return visit()


def got(client: TestClient, path: str, **query: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Header and arrays of a binary."""
    answer = client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return unpacked(answer.content)


def test_a_model_begins_with_layers_knobs_and_newest_profile(
    client: TestClient,
) -> None:
    start = client.get(tables.START).json()
    assert start["model"] == "toy" and start["profile"] == "profile-0091" and not start["partial"]
    model = load("toy").model
    names = {f"{layer['name']}.weight" for layer in start["layers"]}
    held = {name: p for name, p in model.named_parameters() if name in names}
    assert len(held) == len(names) == 22
    rest = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in held.values())
    assert start["rest"] == 2 * rest
    assert [module.rpartition(".")[2] for module in start["modules"]][:2] == ["q_proj", "k_proj"]
    assert "magnitude" in start["pruners"] and "gptq" in start["quantizers"]
    assert start["instant"] == ["magnitude", "rtn"] and start["state"] is None


TEXTS = ["dense", "50%", "2:4", "int4-g64", "2:4+int3-g32", "33.3%", "int8", "90%+int2"]


@pytest.mark.parametrize("columns", [96, 576])
def test_formats_are_the_sum_of_their_parts(columns: int) -> None:
    layer = LinearShape("a", 0, "m", 2, columns)
    for form in map(Format.parse, TEXTS):
        parts = format_parts([form], [layer])
        pattern, width = (parts[name or "dense"] for name in names_of(form))
        scale = width["extra"] / (1 if width["group"] else columns)
        bits = (1 - pattern["drop"]) * width["bits"] + pattern["extra"] + scale
        assert bits == pytest.approx(form.bits_per_weight(columns))
        assert (columns not in pattern["misfits"] + width["misfits"]) == form.fits(columns)
    assert parts["90%"]["label"] == "90\u00a0%" and parts["int2"]["short"] == "2 bits"


def test_a_state_is_opened_with_the_formats_of_its_layers(client: TestClient) -> None:
    def opened(address: str) -> dict[str, Any]:
        query = {"model": "toy", "state": address}
        return client.get(tables.START, params=query).json()["state"]

    state = opened("abc~wanda~gptq~33.3p_2of4andint4-g32_dense~0x20_1_2")
    assert (state["identity"], state["pruner"], state["quantizer"]) == ("abc", "wanda", "gptq")
    assert state["formats"][19:] == [["33.3%", ""], ["2:4", "int4-g32"], ["", ""]]
    assert {*state["parts"]} == {"33.3%", "2:4", "int4-g32", "dense"}
    assert "is not an address" in opened("<img src=x>")["refused"]
    refused = opened("abc~wanda~gptq~2of4~0x22")["refused"]
    assert "embed_tokens cannot be stored as 2:4" in refused


def test_runs_stand_beside_what_was_said_of_their_states(client: TestClient) -> None:
    state = "~wanda~rtn~50p_dense~0x21_1"
    said = {"model": "toy", "state": state, "predicted": 1.2, "live": 1.3}
    kept = {WORKBENCH: said | {"tokens": 512}}
    chained = {"model": "sds-0093", "pattern": "50%", "base": "wanda"}
    store(
        job(93, environment=kept),
        *measured(93, 11.0, dense=10.0),
        job(94, environment=kept, config=chained),
        *measured(94, 12.0, dense=11.0),
        job(95, environment={WORKBENCH: said | {"tokens": -1}}),
        job(98, environment={WORKBENCH: said | {"state": "~wanda~rtn~50p_dense~0x20_1"}}),
        job(96, state="queued"),
        job(97, environment=kept, state="running"),
    )
    found = client.get(tables.START).json()["runs"]
    assert [(each["run"], each["at"]) for each in found] == [
        ("sds-0097", "running"),
        ("sds-0094", "succeeded"),
        ("sds-0093", "succeeded"),
    ]
    finals = [each["final"] for each in found]
    assert finals[0] is None and finals[1:] == pytest.approx([1.2, 1.1])
    layers = [*resolve_model("toy").facts.linears]
    half = sum(Format.parse("50%").nbytes(x.rows, x.columns) for x in layers)
    dense = sum(2 * x.weights for x in layers)
    whole = 2 * resolve_model("toy").facts.parameters
    assert [each["nbytes"] for each in found] == [pytest.approx(whole - dense + half)] * 3
    page = outcome(row := queries.job("sds-0094"), RunResults(None, [], row), 0)
    assert [figure in page for figure in ("1.20\u00a0×", "1.30\u00a0×")] == [True, True]
    assert f"state={state}" in page


def test_a_run_is_the_result_of_the_state_that_its_plan_makes(client: TestClient) -> None:
    facts = resolve_model("toy").facts
    mixed = {"bits": 4, "group_size": 32, "overrides": "0.mlp.down_proj=int6-g32"}
    mixed |= {"stages": "gptq", "embedding": "6", "format": "slimscope"}

    def planned(number: int, kind: str, config: dict[str, Any], **values: Any) -> Job:
        checked, estimate = check_and_estimate(kind, {"model": "toy", **config})
        plan = estimate.plan.model_dump(mode="json") if estimate.plan else None
        row = {"kind": kind, "config": checked.model_dump(mode="json"), "plan": plan}
        return job(number, **row | values)

    store(
        planned(93, "dlqat", mixed, kept_stage="gptq"),
        result(93, "dense", "perplexity", 10.0),
        result(93, "gptq", "perplexity", 12.0, windows=16, context=256),
        result(93, "gptq", "bits_per_weight", 4.5),
        planned(94, "sds", {"pattern": "50%", "base": "wanda"}),
        *measured(94, 20.0),
        planned(95, "sds", {"pattern": "50%"}, kept_stage="redense"),
        result(95, "dense", "perplexity", 10.0),
        result(95, "redense", "perplexity", 11.0),
        result(95, "redense", "zero_share", 0.0),
        job(96, plan={"stages": "<b>"}),
        *measured(96, 20.0),
    )
    runs = client.get(tables.START).json()["runs"]
    assert [x["run"] for x in runs] == ["sds-0094", "dlqat-0093"]  # a re-dense model has no zeros
    pruned, rounded = runs
    assert (pruned["pruner"], pruned["quantizer"], pruned["final"]) == ("wanda", "", 2.0)
    assert (rounded["pruner"], rounded["quantizer"]) == ("", "gptq")
    assert rounded["final"] == pytest.approx(1.2) and rounded["text"] == [16, 256]
    opened = state_at(rounded["state"], (*facts.linears, *facts.embeddings)).formats
    expected = {x.name: "int4-g32" for x in facts.linears}
    expected |= {"model.layers.0.mlp.down_proj": "int6-g32", "model.embed_tokens": "int6-g32"}
    assert {name: str(form) for name, form in opened.items()} == expected
    bits = sum(
        opened[x.name].nbytes(x.rows, x.columns) for x in (*facts.linears, *facts.embeddings)
    )
    weights = sum(x.weights for x in (*facts.linears, *facts.embeddings))
    assert rounded["nbytes"] == pytest.approx(bits + 2 * (facts.parameters - weights))


def test_the_result_of_a_state_is_compared_on_the_text_of_its_live_measurement(
    client: TestClient,
) -> None:
    known = {"model": "toy", "state": "~wanda~rtn~50p_dense~0x21_1", "predicted": 1.2}
    known |= {"live": 1.3, "low": 1.25, "high": 1.35, "tokens": 5 * 256, "context": 256}
    dense = np.full(16, 2.0)
    ours = dense + np.array([0.25] * 5 + [0.5] * 11)
    store(
        job(93, environment={WORKBENCH: known | {"profile": "profile-0091", "preview": True}}),
        *measured(93, 15.0),
        *(
            table(**row)
            for stage, losses in (("dense", dense), ("sds", ours))
            for table, row in [
                profile_row(93, TensorProfile("", -1, "", stage, WINDOW_LOSSES, losses))
            ]
        ),
    )
    row = queries.job("sds-0093")
    results = RunResults(kind_of(row), queries.results([93]), row)
    page = outcome(row, results, 0)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", page)
    start = next(at for at, text in enumerate(cells) if text.strip() == "Predicted")
    table = [[text.strip() for text in cells[at : at + 4]] for at in range(start, start + 16, 4)]
    assert [row[0] for row in table] == [
        "Predicted",
        "Live, preview",
        "Final, same text as live",
        "Final",
    ]
    assert [row[1] for row in table] == [f"{x}\u00a0×" for x in ("1.20", "1.30", "1.28", "1.50")]
    assert table[1][2:] == ["1.25 to 1.35", "5 × 256 tokens"] == [table[1][2], table[2][3]]
    assert table[3][3] == "16 × 256 tokens" and table[3][2] != "–"


@pytest.mark.parametrize(("model", "said"), [("nowhere/none", "nowhere/none"), ("<b>", "b")])
def test_a_model_that_is_not_there_is_refused(client: TestClient, model: str, said: str) -> None:
    answer = client.get(tables.START, params={"model": model})
    assert answer.status_code == 422 and said in answer.json()["what"] + answer.json()["why"]


def test_a_profile_is_sent_as_stored_with_fronts_of_the_solver(
    client: TestClient,
) -> None:
    header, arrays = got(client, profiles.PROFILE, run="profile-0091")
    known = read_profile("profile-0091")
    texts = ["+".join(filter(None, names)) for names in header["formats"]]
    assert texts[: len(FORMATS)] == [*FORMATS]
    assert [name for name, *_ in header["fronts"]] == [*profiles.METHOD_BUDGETS]
    named = {name or "dense" for names in header["formats"] for name in names}
    assert header["parts"].keys() >= named
    finite = np.isfinite(known.predicted)
    assert np.allclose(arrays["predicted"][finite], known.predicted[finite])
    assert np.isnan(arrays["predicted"][~finite]).all()
    solver = budget_solver(known, "quantized")
    for point in range(20, len(arrays["quantized_loss"]), 20):
        formats = {
            x.name: Format() if code == profiles.DENSE_CODE else known.formats[code]
            for x, code in zip(known.layers, arrays["quantized_formats"][point], strict=True)
        }
        mix = solver.mix(formats)
        assert arrays["quantized_loss"][point] == pytest.approx(mix.loss, rel=1e-5)
        assert arrays["quantized_bytes"][point] == pytest.approx(mix.nbytes, rel=1e-5)
        best = solver.solve(Budget("size", mix.nbytes + 1))
        assert best.loss == pytest.approx(mix.loss, rel=1e-5)


def test_a_profile_at_work_has_the_layers_there_are(client: TestClient) -> None:
    header, arrays = got(client, profiles.PROFILE, run="profile-0092")
    assert all(name.startswith("model.layers.0.") for name in header["layers"])
    assert len(arrays["error"]) == len(header["layers"]) == 7
    assert client.get(profiles.PROFILE, params={"run": "sds-0001"}).status_code == 404
    assert client.get(profiles.PROFILE, params={"run": "<b>"}).status_code == 404


def test_weights_are_those_of_the_files(client: TestClient, monkeypatch: Any) -> None:
    name = "model.layers.1.mlp.down_proj"
    header, arrays = got(client, tables.WEIGHTS, model="toy", name=name)
    whole = load("toy").model.get_submodule(name).get_parameter("weight").detach().float().numpy()
    assert header["name"] == name and np.array_equal(arrays["weights"], whole)
    assert header["edge"] == pytest.approx(scale_of(torch.tensor(whole).flatten().sort()[0])[0])
    monkeypatch.setattr(tables, "MAX_WEIGHTS", whole.size // 3)
    _, sampled = got(client, tables.WEIGHTS, model="toy", name=name)
    assert np.array_equal(sampled["weights"], whole[::3])


def test_no_weights_are_fetched_from_elsewhere(client: TestClient) -> None:
    answer = client.get(tables.WEIGHTS, params={"model": "nobody/nothing", "name": "x"})
    assert answer.status_code == 404 and "not here yet" in answer.json()["what"]


@pytest.mark.parametrize("name", ["", "model.norm", "../../etc/passwd"])
def test_nothing_but_layers_is_read(client: TestClient, name: str) -> None:
    answer = client.get(tables.WEIGHTS, params={"model": "toy", "name": name})
    assert answer.status_code == 404 and "is no layer of toy" in answer.json()["what"]
