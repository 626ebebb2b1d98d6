"""New run: compositions and their addresses, form, plan, shell command, and queueing."""

import json
import shlex
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.errors import ConfigError
from backend.queue.actor import Actor
from backend.queue.launcher import SUPERVISOR
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import Job
from jobs import pipeline, sweep
from jobs.cli.app import command_for
from jobs.cli.runs import _operation
from jobs.kind import Kind, kinds
from jobs.operations.registry import OPERATIONS
from jobs.submit import validate_config
from tests.ui.conftest import HOSTILE
from tests.ui.lab import GUEST, asked
from tests.ui.visits import OTHER, Visit
from ui.frame import VERSION, current_user
from ui.pages.new_run import page, plan
from ui.pages.new_run.composition import (
    MAX_ADDRESS,
    Composition,
    change,
    label_of,
    preset_of,
    read_address,
    recipe_of,
)
from ui.runs import choices

TOY = "model=toy&segments=4&context=64&windows=2"
MAP = {"0.self_attn.q_proj": "int8-g64", "1.mlp.*": "int2-g32"}
PIPELINE = "?" + urlencode(
    [
        ("model", "toy"),
        ("step", json.dumps({"sds": {"pattern": "50%", "segments": 4}})),
        ("step", json.dumps({"dlqat": {"bits": [3, 4], "stages": ["gptq"], "overrides": MAP}})),
    ]
)
OPTIONS = [
    (kind, recipe, preset)
    for kind in kinds().values()
    for recipe in kind.recipes or [""]
    for preset in kind.presets or [""]
]


@pytest.fixture
def host(seeded: Settings) -> Actor:
    return current_user(asked())


def composition_at(query: str) -> Composition:
    composition, unfilled = read_address(query)
    assert unfilled == []
    return composition


def answer(user: Actor, query: str, action: str = "", value: str = "") -> dict[str, Any]:
    """The answer to a composition, or to a pressed button."""
    return page.reply(user, message(composition_at(query), action=action, value=value))


def message(composition: Composition, **values: str) -> dict[str, Any]:
    return {"version": VERSION, "composition": composition.model_dump(), **values}


def arrival(user: Actor, query: str) -> dict[str, Any]:
    return page.reply(user, {"version": VERSION, "address": query})


def shown_messages(parts: dict[str, str]) -> set[str]:
    return {name for name, html in parts.items() if name.startswith("message-") and html}


# addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", kinds().values(), ids=kinds())
def test_an_address_fills_every_field_and_is_written_again(kind: Kind) -> None:
    given = {name: f"{name} = *, %&?" for name in kind.config.model_fields}
    composition = composition_at(f"?kind={kind.name}&name=mine&{urlencode(given)}")
    assert composition.steps[0].values == given and composition.name == "mine"
    assert composition_at(composition.address()) == composition


@pytest.mark.parametrize(("kind", "recipe", "preset"), OPTIONS)
def test_recipes_are_recognized_and_the_shell_command_queues_the_same(
    seeded: Settings, monkeypatch: pytest.MonkeyPatch, kind: Kind, recipe: str, preset: str
) -> None:
    composition = change(composition_at(f"?kind={kind.name}"), "recipe", recipe)
    composition = composition_at(change(composition, "preset", preset).address())
    (step,) = composition.steps
    assert (recipe_of(step), preset_of(step)) == (recipe, preset)
    queued: list[Any] = []

    def record(planned: sweep.SweepPlan, *_: Any) -> list[Job]:
        queued.append(planned)
        raise ConfigError("Not queued.")

    def unchecked(name: str, values: Any, several: Any) -> sweep.SweepPlan:
        configs = [validate_config(name, {**values, **x}) for x in sweep.combinations(several)]
        return sweep.SweepPlan(configs, [], Any)  # type: ignore[arg-type]

    monkeypatch.setattr(sweep.SweepPlan, "queue", record)
    monkeypatch.setattr(sweep.SweepPlan, "warnings", ())
    monkeypatch.setattr(sweep, "plan", unchecked)
    words = shlex.split(plan.command(composition))
    assert words[:3] == ["slimscope", "submit", kind.name]
    with pytest.raises(ConfigError, match="Not queued"):
        command_for(_operation(kind)).main(words[3:], standalone_mode=False)
    assert queued[0].configs == unchecked(kind.name, step.values, {}).configs


def test_the_shell_command_of_a_pipeline_queues_the_same(
    host: Actor, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    composition, read = composition_at(PIPELINE), list[pipeline.Pipeline]()
    monkeypatch.setattr(pipeline, "queue", lambda found, *_, **__: read.append(found) or [])
    _, _, text, pipe, *words = shlex.split(plan.command(composition))
    (tmp_path / "file").write_text(text)
    with (tmp_path / "file").open() as stdin:
        monkeypatch.setattr("sys.stdin", stdin)
        assert [pipe, *words] == ["|", "slimscope", "pipeline", "-"]
        command_for(OPERATIONS["pipeline"]).main(["-"], standalone_mode=False)
    assert read == [pipeline.of_document(composition.document())]


def test_the_map_of_formats_arrives_and_is_queued(host: Actor) -> None:
    overrides = json.dumps(MAP, separators=(",", ":"))
    query = urlencode({"kind": "dlqat", "overrides": overrides, "stages": '["gptq"]'})
    composition = composition_at(f"?{query}&{TOY}")
    assert label_of(composition.shown) == "GPTQ"  # nothing is trained
    said = answer(host, composition.address(), "queue")["parts"]["new-said"]
    job = queries.jobs()[0]
    assert f'href="run?id={job.run}"' in said
    assert job.config["overrides"] == ", ".join(f"{name}={form}" for name, form in MAP.items())
    picture = plan.layer_map(plan.planned(composition)[0].plan.estimates[0].plan)  # type: ignore[union-attr]
    assert picture and {"8 bits in groups of 64", "3 bits in groups of 64"} <= {
        label for _, label, _ in picture.legend
    }


def test_a_pipeline_with_several_values_is_planned_and_queued(host: Actor) -> None:
    composition, before = composition_at(PIPELINE), len(queries.jobs())
    assert composition_at(composition.address()) == composition
    assert [step.runs for step in plan.planned(composition)] == [1, 2]
    assert "3 runs" in arrival(host, PIPELINE)["parts"]["new-add"]
    assert "3 runs were added" in answer(host, PIPELINE, "queue")["parts"]["new-said"]
    jobs = queries.jobs()[: len(queries.jobs()) - before]
    assert sorted(job.config.get("bits", 0) for job in jobs) == [0, 3, 4]
    assert all(job.config["overrides"] for job in jobs if job.kind == "dlqat")


def test_a_run_is_opened_again(host: Actor) -> None:
    composition = composition_at("?from=sds-0001")
    values = composition.shown.values
    assert (values["base"], values["model"], composition.name) == (
        "magnitude",
        "toy",
        queries.job(1).name,
    )
    assert composition_at("?kind=dlqat&from=sds-0001").shown.kind == "sds"


UNFIT = [
    "kind=spd",
    "from=sds-9999",
    "from=../x",
    "bogus=1",
    f"{urlencode({HOSTILE: HOSTILE})}",
    "overrides={%22a%22:",  # cut off
    "overrides={%22a%22:{%22b%22:1}}",
    f"overrides={'[' * 5000}1{']' * 5000}&x=1",
    "overrides=" + "{%22a%22:" * 3000,
    "step=[]",
    "step=1",
    "step={}",
    "step={%22spd%22:{}}",
    "step={%22sds%22:{%22bogus%22:1}}",
    "step={%22sds%22:{%22preset%22:%22none%22}}",
    f"step={'[' * 20_000}",
    f"step={'9' * 5000}",
    "&".join(["step={%22sds%22:{}}"] * 13),
    "step={%22sds%22:{}}&step={%22sds%22:{%22model%22:%22other%22}}",
    "x=1&" * 300,
    f"overrides={'a' * MAX_ADDRESS}",
    "preset[]=%00%ff&kind=%F0%9F%98%80",
]


def test_parts_of_an_address_that_fit_no_form_are_told(host: Actor) -> None:
    for query in UNFIT:
        composition, unfilled = read_address(f"?model=toy&{query}")
        assert unfilled and len(composition.steps) <= pipeline.MAX_STEPS, query


@pytest.mark.parametrize("query", [UNFIT[0], UNFIT[4], UNFIT[-1]])
def test_what_an_address_cannot_fill_is_said_and_the_form_is_there(host: Actor, query: str) -> None:
    reply = arrival(host, f"?model=toy&{query}")
    said = reply["parts"]["new-said"]
    assert "was not filled in" in said and len(said) < 60_000
    assert "<img" not in json.dumps(reply) and "${" not in said
    assert reply["parts"]["new-form"]


@given(st.text(max_size=300) | st.lists(st.sampled_from('{}[]":,&=%25step sds01')).map("".join))
def test_any_address_is_read(query: str) -> None:
    for prefix in ("", "step=", "overrides=", "kind=dlqat&stages="):
        composition, _ = read_address(prefix + query)
        assert read_address(composition.address())[0] == composition


# the form -----------------------------------------------------------------------------------------


def test_buttons_change_the_composition() -> None:
    composition = change(composition_at("?kind=sds&model=toy"), "add", "dlqat")
    assert composition.at == 1 and composition.model == "toy" and composition.shown.values == {}
    composition = change(composition, "several", "bits")
    assert composition.shown.several == {"bits": "3"}
    composition.shown.several["bits"] = "4, 5"
    assert change(composition, "single", "bits").shown.values == {"bits": "4"}
    swept = change(composition, "several", "model")
    assert swept.steps[0].several == {"model": "toy"}
    assert change(swept, "single", "model") == composition
    assert change(composition, "step", "0").shown.kind == "sds"
    composition = change(change(composition, "step", "0"), "remove", "")
    assert (composition.shown.kind, composition.model) == ("dlqat", "toy")
    assert change(composition, "kind", "evaluation").shown.values == {"model": "toy"}
    assert change(composition, "remove", "") == composition
    chosen = change(composition, "pipeline", "prune, quantize, draft")
    assert len(chosen.steps) == 6 and chosen.model == "toy"
    assert chosen.steps[1].values["segments"] == "12"  # of the preset


@pytest.mark.parametrize(
    ("query", "label"),
    [
        ("kind=sds", "SDS"),
        ("kind=sds&base=sparsegpt", "SDS"),
        ("kind=sds&base=sparsegpt&base=wanda", "SDS"),
        ("kind=sds&until=first", "Wanda"),
        ("kind=sds&until=first&base=magnitude", "SDS pruning, own settings"),
        ("kind=dlqat&stages=gptq&format=slimscope", "GPTQ"),
        ("kind=dlqat&stages=rtn", "DL-QAT quantization, own settings"),
        ("kind=dlqat&stages=gptq&allocation=budget:loss+3%25", "GPTQ by layer"),
        ("kind=dlqat&stages=gptq&stages=awq", "DL-QAT quantization, own settings"),
        ("kind=benchmark", "Benchmark"),
    ],
)
def test_a_step_is_called_what_it_does(query: str, label: str) -> None:
    assert label_of(composition_at(query).shown) == label


@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("pattern=5:3", {"pattern"}),
        ("segments=", {"segments"}),
        ("pattern=5:3&damping=99", {"pattern", "damping"}),
        ("model=/etc/passwd", {"model"}),
        ("evaluation_text=nothing", {"evaluation_text"}),
        ("control=perhaps", {"control"}),
        ("base=wanda&base=perhaps", {"base"}),
        ("seed=0..99", {"seed"}),
        ("seed=0&seed=0", {"seed"}),
        ("pattern=50%25&pattern=60%25&seed=0..40", {"seed"}),
        ("seed=0..1&segments=0", {"segments"}),
    ],
)
def test_an_error_stands_beside_its_field_and_nothing_is_queued(
    host: Actor, query: str, names: set[str]
) -> None:
    address = f"?kind=sds&{TOY.replace('model=toy&', '') if 'model' in query else TOY}&{query}"
    address = address.replace("segments=4&", "") if "segments" in query else address
    before = len(queries.jobs())
    reply = answer(host, address, "queue")
    assert shown_messages(reply["parts"]) == {f"message-{name}" for name in names}
    assert "disabled" in reply["parts"]["new-plan"] and "alert" in reply["parts"]["new-said"]
    assert len(queries.jobs()) == before


def test_an_error_in_another_step_is_named_in_the_plan(host: Actor) -> None:
    address = PIPELINE.replace("50%25", "5:3")
    parts = arrival(host, address)["parts"]
    assert shown_messages(parts) == {"message-pattern"} and "Step 1 cannot run" in parts["new-plan"]
    composition = composition_at(address).model_copy(update={"at": 1})
    parts = page.reply(host, message(composition))["parts"]
    assert shown_messages(parts) == set() and "Step 1 cannot run" in parts["new-plan"]


# the plan -----------------------------------------------------------------------------------------


def test_the_plan_shows_model_costs_warnings_and_the_same_run(host: Actor) -> None:
    parts = answer(host, f"?kind=sds&{TOY}")["parts"]
    assert all(label in parts["new-plan"] for label in ("Toy stories", "Time", "Memory", "Disk"))
    assert "Size before" in parts["new-plan"] and parts["new-recipes"].count("kB") == 5
    assert "⚠" in answer(host, "?kind=sds&model=toy&segments=1&context=16")["parts"]["new-plan"]
    assert "Already run" not in parts["new-plan"]
    added = answer(host, f"?kind=sds&{TOY}", "queue")["parts"]
    run = queries.jobs()[0].run
    assert "In the queue" in added["new-plan"] and "Already run" not in added["new-plan"]
    assert f'href="run?id={run}"' in answer(host, f"?kind=sds&{TOY}")["parts"]["new-plan"]
    with writing() as session:
        session.get_one(Job, queries.job_id(run)).state = "succeeded"
    assert "Already run" in answer(host, f"?kind=sds&{TOY}")["parts"]["new-plan"]
    with writing() as session:
        session.get_one(Job, queries.job_id(run)).state = "failed"
    assert "Already run" not in answer(host, f"?kind=sds&{TOY}")["parts"]["new-plan"]


def test_a_sweep_is_counted_and_queued(host: Actor) -> None:
    query = f"?kind=sds&{TOY}&pattern=2:4&pattern=50%25&seed=0..2"
    assert "Add 6 runs" in answer(host, query)["parts"]["new-add"]
    said = answer(host, query, "queue")["parts"]["new-said"]
    jobs = queries.sweep(queries.jobs()[0].id)
    assert (
        "6 runs were added" in said
        and f'href="runs?q=sweep%3D{jobs[0].run}&amp;open={jobs[0].run}"' in said
    )
    assert [(j.config["pattern"], j.config["seed"]) for j in jobs][-1] == ("50%", 2)


@pytest.mark.parametrize("seconds", [0.0, 1.0, 60.0, 1e9])
def test_bars_stay_on_their_axis(host: Actor, seconds: float) -> None:
    assert 0 <= plan.time_position(seconds) <= 1
    found = plan.bars(plan.planned(composition_at(PIPELINE)))
    assert all(0 <= bar.start <= bar.end <= 1 for bar in found)


# who may ------------------------------------------------------------------------------------------


def test_guests_get_the_command_only_and_are_refused(
    host: Actor, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest, before = current_user(asked(GUEST)), len(queries.jobs())
    monkeypatch.setattr(plan, "planned", lambda _: pytest.fail("a model was looked up"))
    parts = answer(guest, f"?kind=sds&{TOY}", "queue")["parts"]
    assert "disabled" in parts["new-add"] and "may not" in parts["new-said"]
    assert "slimscope submit sds" in parts["new-plan"].replace('<span class="nowrap">', "")
    assert "may not" in answer(guest, PIPELINE, "queue")["parts"]["new-said"]
    assert len(queries.jobs()) == before


def test_guests_who_may_add_runs_add_single_ones(open_to_guests: Visit) -> None:
    browser = open_to_guests(OTHER)
    browser.get("/new-run")  # sets the cookie
    for query, is_added in ((f"kind=sds&{TOY}&threads=1", True), (PIPELINE[1:], False)):
        body = message(composition_at(query), action="queue")
        parts = browser.post(page.PATH, json=body).json()["parts"]
        assert ("was added" in parts["new-said"]) == is_added
    assert "disabled" in parts["new-add"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"composition": 1},
        {"composition": {"steps": []}},
        {"composition": {"steps": [{"kind": "spd"}]}},
        {"composition": {"steps": [{"kind": "sds"}], "at": 9}},
        {"composition": {"steps": [{"kind": "sds"}] * 99}},
        {"composition": {"steps": [{"kind": "sds", "values": {"pattern": {}}}]}},
        {"composition": {"steps": [{"kind": "sds", "bogus": 1}]}},
        {"composition": {"steps": [{"kind": "sds"}]}, "action": "kind", "value": "spd"},
        {"composition": {"steps": [{"kind": "sds"}]}, "action": "pipeline", "value": HOSTILE},
        {"composition": {"steps": [{"kind": "sds"}]}, "action": "x" * 99},
        {
            "composition": {"steps": [{"kind": "sds", "values": {HOSTILE: HOSTILE}}]},
            "action": "queue",
        },
        {"composition": {"steps": [{"kind": "sds", "several": {"bogus": "1", "model": '"'}}]}},
        {"composition": {"steps": [{"kind": "sds", "several": {"seed": ","}}]}, "action": "single"},
        {"address": HOSTILE, "bogus": 1},
        {"address": "", "version": "0.0.1"},
    ],
)
def test_odd_messages_are_answered_or_refused(visit: Visit, body: Any) -> None:
    before = len(queries.jobs())
    if isinstance(body, dict):
        body = {"version": VERSION, **body}
    response = visit().post(page.PATH, json=body)
    assert response.status_code in (200, 422)
    assert "<img" not in str(response.json().get("parts"))  # else it is shown as text
    assert len(queries.jobs()) == before


def test_other_sites_and_large_bodies_are_refused(visit: Visit) -> None:
    site = {"origin": "http://evil.example", "sec-fetch-site": "cross-site"}
    assert visit().post(page.PATH, json={}, headers=site).status_code == 403
    assert visit().post(page.PATH, json={"address": "a" * 1_000_001}).status_code == 413
    assert visit().post(page.PATH, content="[" * 99 + "]" * 99).status_code == 422


def test_who_writes_a_run_is_expected_and_who_reads_is_not(host: Actor) -> None:
    for user, is_expected in ((current_user(asked(GUEST)), False), (host, True)):
        answer(user, f"?kind=sds&{TOY}")
        assert SUPERVISOR.is_called() == is_expected


@pytest.mark.parametrize("kind", kinds().values(), ids=kinds())
def test_recipes_and_presets_set_different_fields(kind: Kind) -> None:
    recipes, presets = kind.recipes or {"": {}}, kind.presets or {"": {}}
    for recipe in recipes.values():
        assert not any(recipe.keys() & preset.keys() for preset in presets.values())
    usual = {n: info.default for n, info in kind.config.model_fields.items()}
    assert all(usual[name] == value for name, value in next(iter(recipes.values())).items())


def test_models_and_texts_are_offered_by_title(current: Settings) -> None:
    assert "toy" in [name for _, name in choices.models()]
    calibration = [name for _, name in choices.texts("calibration")]
    evaluation = [name for _, name in choices.texts("evaluation")]
    assert calibration[0] == evaluation[0] == "auto"
    assert "self" in calibration and "self" not in evaluation
