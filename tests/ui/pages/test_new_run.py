"""The launch page: preview, refusal, queueing, and what there is to choose from."""

from collections.abc import Callable
from functools import cache
from typing import Any

import gradio as gr
import pytest

from backend.queue.launcher import SUPERVISOR
from backend.settings import Settings
from backend.store import queries
from backend.store.session import writing
from backend.store.tables import Job
from jobs.kind import Kind, kinds
from tests.ui.lab import GUEST, HOST, asked
from ui.frame import current_user
from ui.pages.new_run import page as launch
from ui.pages.new_run import preview
from ui.runs import choices

TOY: dict[str, Any] = {"model": "toy", "segments": 4, "context": 64, "windows": 2}


@pytest.fixture
def sds(seeded: Settings) -> Kind:
    return kinds()["sds"]


def test_the_preview_tells_model_cost_warnings_and_command(sds: Kind) -> None:
    html, _, error, _ = preview.preview_of(sds, TOY)
    assert error is None
    assert "Toy stories" in html and "parameters" in html
    assert "Memory" in html and "Time" in html
    assert "--model toy" in html.replace('<span class="nowrap">', "").replace("</span>", "")
    assert "Size" in html and "kB in 16 bits → about" in html
    html, *_ = preview.preview_of(sds, TOY | {"segments": 1, "context": 16})
    assert "⚠" in html
    configs = [kinds()["evaluation"].config(model="sds-0001")]
    assert preview.models_of(configs) == {"Model": "sds-0001"}


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"pattern": "5:3"}, "pattern"),
        ({"pattern": "3:7"}, "pattern"),
        ({"segments": None}, "segments"),
        ({"damping": 99}, "damping"),
        ({"model": "/etc/passwd"}, "model"),
        ({"model": "nothing"}, "model"),
        ({"evaluation_text": "nothing"}, "evaluation_text"),
    ],
)
def test_what_cannot_work_names_its_field_before_it_is_queued(
    sds: Kind, values: dict[str, Any], field: str
) -> None:
    html, _, error, _ = preview.preview_of(sds, TOY | values)
    assert error is not None and error.field == field
    assert "slimscope submit" in html
    before = len(queries.jobs())
    said, refused = preview.enqueue(sds, "", TOY | values, (), asked())
    assert refused is not None and refused.field == field
    assert 'role="alert"' in said["value"] and len(queries.jobs()) == before


def test_the_preview_names_the_run_that_was_the_same(sds: Kind) -> None:
    assert "Already run" not in preview.preview_of(sds, TOY)[0]
    said, _ = preview.enqueue(sds, "", TOY, (), asked())
    run = queries.jobs()[0].run
    assert f'href="run?id={run}"' in said["value"]
    html = preview.preview_of(sds, TOY | {"seed": 0})[0]
    assert "Already run" in html and f'href="run?id={run}"' in html
    assert "Already run" not in preview.preview_of(sds, TOY | {"seed": 1})[0]
    swept = preview.preview_of(sds, TOY, [("seed", "0..2")])[0]
    assert swept.count('href="run?id=') == 1
    with writing() as session:
        session.get_one(Job, queries.job_id(run)).state = "failed"
    assert "Already run" not in preview.preview_of(sds, TOY)[0]


SWEPT = (("pattern", "2:4, 50%"), ("seed", "0..2"))


def test_a_sweep_tells_how_many_runs_it_adds_and_what_they_cost(sds: Kind) -> None:
    html, runs, error, _ = preview.preview_of(sds, TOY, SWEPT)
    assert (runs, error) == (6, None)
    assert "6 runs" in html and "for all 6" in html and "--sweep" in html
    said, error = preview.enqueue(sds, "six", TOY, SWEPT, asked())
    assert error is None and "6 runs were added" in said["value"]
    jobs = queries.sweep(queries.jobs()[0].id)
    assert [(j.config["pattern"], j.config["seed"]) for j in jobs][-1] == ("50%", 2)
    assert f'href="runs?q=sweep%3D{jobs[0].run}&amp;open={jobs[0].run}"' in said["value"]


@pytest.mark.parametrize(
    ("row", "values", "field"),
    [
        (("pattern", "2:4, 5:3"), {}, "pattern"),
        (("seed", "0..99"), {}, "seed"),
        (("seed", ""), {}, "seed"),
        (("", "1, 2"), {}, ""),
        (("seed", "0, 1"), {"segments": 0}, "segments"),
    ],
)
def test_a_bad_sweep_is_explained_beside_its_row(
    sds: Kind, row: tuple[str, str], values: dict[str, Any], field: str
) -> None:
    _, runs, error, _ = preview.preview_of(sds, TOY | values, [row])
    assert runs == 0 and error is not None and error.field == field
    with gr.Blocks():
        form = launch._form(sds, visible=True)
    given = [*({**form.form.values([None] * len(form.form.inputs)), **TOY}).values()]
    told = form.show_errors(error, [*given, "base", "wanda", *row, "", ""])
    shown = [m.elem_id for m, update in told.items() if update.get("visible")]
    assert shown == (["sds-message-segments"] if field == "segments" else ["sds-sweep-message-2"])


@cache
def built() -> gr.Blocks:
    """The page, which takes a while to build."""
    with gr.Blocks() as page:
        launch.build()
    return page


def handlers(name: str) -> list[Any]:
    """Its handlers of that name."""
    return [f.fn for f in built().fns.values() if getattr(f.fn, "__name__", "") == name]


def arrival(who: tuple[str, str] = HOST, **query: str) -> dict[str, Any]:
    """What the page is told when it is opened at this address, by the elements' ids."""
    (arrive,) = handlers("arrive")
    return {component.elem_id: update for component, update in arrive(asked(who, **query)).items()}


def test_the_address_fills_the_form(sds: Kind) -> None:
    told = arrival(**{"from": "sds-0001"})
    assert told["sds-field-base"]["value"] == "magnitude"
    assert told["sds-field-model"]["value"] == "toy"
    assert "sds-field-segments" not in told  # which its config does not name
    assert told["new-name"] == queries.job(1).name
    assert told["new-kind"]["value"] == "sds"
    told = arrival(kind="evaluation", model="sds-0001")
    assert told["evaluation-field-model"]["value"] == "sds-0001"
    told = arrival(kind="evaluation", windows="24", context="1e3")
    assert told["evaluation-field-windows"]["value"] == 24
    assert "evaluation-field-context" not in told  # plain numbers alone
    assert "evaluation-field-windows" not in arrival(kind="evaluation", windows="9" * 99)
    assert "value" not in told["sds-field-model"] and told["new-kind"]["value"] == "evaluation"
    offered = [kind for _, kind in told["new-kind"]["choices"]]
    assert offered == ["sds", "dlqat", "amphista", "evaluation"]  # methods, and what was asked for
    told = arrival(kind="spd")
    assert "There is no kind of run called" in told["new-said"]["value"]
    assert "new-kind" not in told and "new-said" not in arrival(kind="dlqat")


@pytest.mark.parametrize("old", ["sds-9999", "", "<b>", "../x"])
def test_a_run_that_is_not_there_leaves_the_form_as_it_is(sds: Kind, old: str) -> None:
    told = arrival(**{"from": old})
    unknown = old in ("sds-9999", "../x")  # else the address is malformed
    assert ("new-said" in told) == unknown
    assert not unknown or f"There is no run {old}." in told["new-said"]["value"]
    assert "sds-field-base" not in told and "new-kind" not in told
    assert "value" not in told["sds-field-model"]


def test_guests_find_the_button_off_with_the_reason_and_are_refused(sds: Kind) -> None:
    told = arrival(GUEST)
    assert told["new-add"]["interactive"] is False
    assert "Guests have read-only access" in told["new-said"]["value"]
    assert "new-add" not in arrival()
    said, error = preview.enqueue(sds, "", TOY, (), asked(GUEST))
    assert error is not None and "may not" in said["value"]
    assert len(queries.jobs()) == 5


def test_who_writes_a_run_is_expected_and_who_reads_is_not(sds: Kind) -> None:
    for request, is_expected in ((asked(GUEST), False), (asked(), True)):
        preview.preview_for(current_user(request), sds, TOY)
        assert SUPERVISOR.is_called() == is_expected


def test_recipes_and_presets_say_what_they_set_and_leave_the_rest(sds: Kind) -> None:
    at = 2 * [*kinds()].index("amphista")
    recipe, preset = handlers("apply_option")[at : at + 2]

    def told(apply: Callable[[str], Any], name: str) -> dict[str, Any]:
        return {c.elem_id: update for c, update in apply(name).items() if c.elem_id}

    medusa = told(recipe, "Medusa")
    assert medusa["amphista-field-architecture"]["value"] == "medusa"
    assert len(medusa) == 2  # the model and a training time of one's own stay
    assert medusa["recipe-amphista"]["info"] == "Sets Drafter architecture = medusa."
    assert told(recipe, "Amphista")["amphista-field-architecture"]["value"] == "amphista"
    quick, usual = told(preset, "quick look"), told(preset, "default")
    assert quick["amphista-field-minutes"]["value"] == 0.5
    assert usual["amphista-field-minutes"]["value"] == 10 and quick.keys() == usual.keys()
    assert usual["preset-amphista"]["info"] == "" and "amphista-field-architecture" not in quick


@pytest.mark.parametrize("kind", kinds().values(), ids=kinds())
def test_recipes_and_presets_set_different_fields_and_are_valid_together(kind: Kind) -> None:
    recipes, presets = kind.recipes or {"": {}}, kind.presets or {"": {}}
    for recipe in recipes.values():
        for preset in presets.values():
            assert not recipe.keys() & preset.keys()
    usual = {n: info.default for n, info in kind.config.model_fields.items()}
    assert all(usual[name] == value for name, value in next(iter(recipes.values())).items())


def test_models_and_texts_are_offered_by_title(current: Settings) -> None:
    assert "toy" in [name for _, name in choices.models()]
    calibration = [name for _, name in choices.texts("calibration")]
    evaluation = [name for _, name in choices.texts("evaluation")]
    assert calibration[0] == evaluation[0] == "auto"
    assert "self" in calibration and "self" not in evaluation
