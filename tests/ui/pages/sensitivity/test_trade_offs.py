"""The Trade-offs page: budgets, their mixes, and what was measured beside them."""

import re
from html import unescape
from typing import Any
from urllib.parse import parse_qsl

import pytest

from backend.budget import Budget
from backend.sensitivity.budget import Mix
from backend.store.session import writing
from backend.store.tables import Job
from jobs.dlqat.kind import DLQATJob
from jobs.fields.models import resolve_model
from jobs.profile.profiles import DECODING_TIMES, KINDS, WEIGHTS_MARK, weights_fingerprint
from jobs.sds.kind import SDSJob
from jobs.sweep import plan
from tests.ui.conftest import HOSTILE, Fill
from tests.ui.lab import asked, job, result, store
from tests.ui.pages.sensitivity.profiles import TIMES, profile_rows
from ui.format import NBSP, share
from ui.pages.trade_offs import page, selection
from ui.pages.trade_offs.panels import finding, front_chart
from ui.pages.trade_offs.selection import TradeoffSelection, TradeoffView
from ui.widgets.config_form import address_values


@pytest.fixture(autouse=True)
def lab(filled: Fill) -> None:
    filled(store_runs)


def store_runs() -> None:
    """profile-0001 and profile-0002 have ended, profile-0003 works; one run of each method, and one
    of another model."""
    timed = {DECODING_TIMES: TIMES, WEIGHTS_MARK: weights_fingerprint(resolve_model("toy"))}
    profiles = [
        profile_rows(1),
        profile_rows(2, environment=timed),
        profile_rows(3, blocks=1, state="running"),
    ]
    quantized = {"kind": "dlqat", "kept_stage": "dlqat", "name": HOSTILE}
    runs = [
        job(4, **quantized, config={"model": "toy", "bits": 3}),
        job(5, name=HOSTILE),
        job(6, **quantized, config={"model": "smollm2-135m", "bits": 3}),
    ]
    store(*(one for one, _ in profiles), *runs, *(row for _, rows in profiles for row in rows))
    for number, stage in ((4, "dlqat"), (5, "sds"), (6, "dlqat")):
        figure = ("zero_share", 0.5) if stage == "sds" else ("bits_per_weight", 3.25)
        store(
            result(number, "dense", "perplexity", 10.0),
            result(number, stage, *figure),
            result(number, stage, "perplexity", 12.0),
        )


def opened(**query: str) -> dict[str, Any]:
    return page.SHARED.open(asked(**{"run": "profile-0002"} | query))


def view(**values: str) -> TradeoffView:
    return TradeoffView.at(TradeoffSelection(**({"run": "profile-0002"} | values)))


def solved(asked_for: TradeoffView) -> tuple[Budget, Mix]:
    assert isinstance(asked_for.answer, tuple)
    return asked_for.answer


def test_it_opens_with_a_budget_that_can_be_kept() -> None:
    shown = opened()
    assert shown["budget"]["value"] == "loss 10%" and shown["method"]["value"] == "quantized"
    assert not shown["refusal"]["visible"] and "the perplexity, predicted" in shown["answer"]
    budget, mix = solved(view())
    assert str(budget) == "loss 10%" and mix.ratio <= 1.1
    assert "MB at +" in shown["front_title"] and "spared most" in shown["map_title"]
    smaller = finding(view(budget="0.142MB"))  # 4 bits are the largest format it beats in both
    assert "; 4 bits in all layers: 0.145 MB at +134.6 %" in smaller.replace(NBSP, " ")


def test_a_mix_of_pruned_layers_stands_beside_the_pattern_of_the_same_share() -> None:
    half = view(method="pruned", budget="50%")
    alone = next(one for form, one in half.front.uniform.items() if str(form) == "50%")
    said = finding(half)
    assert alone.ratio > solved(half)[1].ratio
    assert f"50{NBSP}% in all layers: {share(0.5)} zeros at +{share(alone.ratio - 1)}" in said


@pytest.mark.parametrize(
    ("budget", "method", "kind"),
    [
        ("3.25bits", "quantized", DLQATJob),
        ("0.2MB", "quantized", DLQATJob),
        ("50%", "pruned", SDSJob),
        ("loss 20%", "quantized", DLQATJob),
    ],
)
def test_a_budget_leads_to_a_form_that_takes_it(budget: str, method: str, kind: Any) -> None:
    """The address fills in a form that can be queued as it is."""
    asked_for = view(budget=budget)
    assert asked_for.selection.method == method
    (address,) = re.findall(r'href="new[?]([^"]+)"', page.answer_of(asked_for)["answer"])
    values = address_values(asked(**dict(parse_qsl(unescape(address)))), kind)
    assert values["allocation"] == f"budget:{solved(asked_for)[0]}"
    assert plan(KINDS[asked_for.method], values, {}).configs


def test_the_front_is_never_above_a_format_alone_and_leads_to_mix_and_run() -> None:
    drawn = front_chart(view(budget="3.25bits"))
    best, alone, runs, star = drawn.figure.data
    for x, y in zip(alone.x, alone.y, strict=True):
        assert min(b for a, b in zip(best.x, best.y, strict=True) if a <= x + 1e-9) <= y + 1e-9
    assert [*runs.customdata] == ["run?id=dlqat-0004"] and runs.y[0] == pytest.approx(1.2)
    assert runs.x[0] == pytest.approx(alone.x[1])  # both have 3.25 bits
    assert star.x[0] <= alone.x[1] + 1e-6 and star.y[0] <= alone.y[1]
    assert 'href="run?id=dlqat-0004"' in drawn.frame["Of"][0]
    for budget in best.customdata:
        solved(view(budget=budget))
    pruned = front_chart(view(method="pruned", budget="50%")).figure.data
    assert [*pruned[2].customdata] == ["run?id=sds-0005"] and [*pruned[2].x] == [50]
    for budget in pruned[0].customdata[:-1]:
        solved(view(method="pruned", budget=budget))


@pytest.mark.parametrize(
    ("budget", "method", "said"),
    [
        ("0.05MB", "quantized", "Choose 0.11MB or more"),
        ("99%", "pruned", "Choose 70% or less"),
        ("50%", "quantized", "Choose Pruned above"),
        ("<b>", "quantized", "&#39;&lt;b&gt;&#39; is not a budget. Write a size (80MB)"),
        (HOSTILE[:40], "quantized", "is not a budget"),
    ],
)
def test_what_cannot_be_kept_is_refused_beside_it(budget: str, method: str, said: str) -> None:
    bad = view(method=method, budget=budget)
    shown = page.draw(bad)
    assert shown["refusal"]["visible"] and said in shown["refusal"]["value"]
    assert "<img" not in shown["refusal"]["value"] and shown["refusal"]["value"].count("<b>") == 1
    assert not shown["answer"] and shown["map_chart"] == bad.answer.what
    assert "budget" not in shown  # what was typed stays
    assert bad.selection.budget == budget


def test_speed_is_an_axis_where_the_profile_has_timed_its_formats() -> None:
    shown = opened(across="ms", budget="4ms")
    assert shown["across"]["visible"] and not shown["refusal"]["visible"]
    assert "tokens/s at +" in shown["front_title"] and "ms a token" in shown["answer"]
    drawn = front_chart(view(across="ms", budget="4ms"))
    best, alone, star = drawn.figure.data  # no run, no file: they were not timed so
    assert dict(zip(alone.text, alone.x, strict=True))["3"] == pytest.approx(250)
    assert [*best.x] == sorted(best.x, reverse=True) and star.x[0] >= 250 - 1e-6
    for budget in best.customdata:
        assert solved(view(across="ms", budget=budget))[0].kind == "ms"
    untimed = opened(run="profile-0001", across="ms", budget="4ms")
    assert not untimed["across"]["visible"] and "MB at" not in untimed["front_title"]
    assert "profile-0001 did not measure decoding times." in untimed["refusal"]["value"]


def test_others_files_are_landmarks_of_its_weights_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert not view().landmarks
    stored = selection.landmarks_file()
    same = {
        "models": {weights_fingerprint(resolve_model("toy")): next(iter(stored["models"].values()))}
    }
    monkeypatch.setattr(selection, "landmarks_file", lambda: stored | same)
    (files,) = [x for x in front_chart(view()).figure.data if x.name == "llama.cpp, measured"]
    assert [*files.text] == ["Q2_K", "Q4_K_M"] and files.y[0] > files.y[1] > 1
    assert "make bench-budget" in front_chart(view()).note
    for other in ({"run": "profile-0001"}, {"method": "pruned", "budget": "50%"}):
        assert "llama.cpp" not in front_chart(view(**other)).note


def test_a_model_that_has_changed_is_shown_and_takes_no_new_run() -> None:
    with writing() as session:
        session.get_one(Job, 2).environment = {WEIGHTS_MARK: "of other weights"}
    assert view().newest == "" and "perplexity, predicted" in opened()["answer"]


def test_an_older_profile_says_which_one_a_new_run_takes() -> None:
    assert "takes the newest profile, profile-0002" in opened(run="profile-0001")["answer"]
    assert "newest profile" not in opened()["answer"]


def test_a_profile_at_work_has_no_mix_yet() -> None:
    notice = opened(run="profile-0003")["notice"]["value"]
    assert "profile-0003 has not measured all layers" in notice and "yet." in notice
    assert opened(run="")["run"]["value"] == "profile-0002"


def test_a_typed_budget_shows_the_formats_it_is_of() -> None:
    assert page.change_budget(view(method="quantized", budget="50%"))["method"] == "pruned"
    assert page.change_budget(view(method="pruned", budget="3bits"))["method"] == "quantized"
    assert page.change_budget(view(method="pruned", budget="loss 5%"))["method"] == "pruned"


def test_other_formats_take_a_budget_that_is_of_them() -> None:
    def budget(**values: str) -> str:
        return str(page.change_method(view(**values))["budget"])

    assert budget(method="pruned", budget="80MB") == "50%"
    assert budget(method="quantized", budget="50%") == "loss 10%"
    assert budget(method="pruned", budget="loss 5%") == "loss 5%"  # of either
    assert budget(method="pruned", budget="nonsense") == "nonsense"
