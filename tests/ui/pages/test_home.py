"""The page Home: the exhibits, what runs, what needs a look."""

import re
from html import unescape
from typing import Any

import numpy as np
import pytest

from backend.backup import examples
from backend.queue import conversations
from backend.queue.service import ESTIMATED_SECONDS
from backend.settings import Settings
from backend.statistics.tensors import BASE_STATISTICS, BINS, QUANTILES, TensorSnapshot
from backend.store import queries
from backend.store.session import writing
from jobs.imported import check_row
from jobs.runtime.row_buffer import tensor_row
from tests.ui.lab import GUEST, asked, job, pressed, result, store
from ui.pages.home import page as home
from ui.pages.home import showcase
from ui.runs.results import real_models_first

# what runs, what needs a look ---------------------------------------------------------------------


def test_an_empty_folder_says_what_to_do_first(tables: Settings) -> None:
    assert home.draw(asked())["runs"] == ""
    hero = home.draw_exhibits(None, asked())["hero"]
    assert "Prune a toy model" in hero and 'href="new-run' in hero and "<figure" not in hero


def test_what_runs_waits_and_failed_has_its_place(seeded: Settings) -> None:
    cards = home.draw(asked())["runs"]
    assert "sds-0002" in cards and "61\u00a0%" in cards and "min left" in cards
    assert cards.index("sds-0002") < cards.index("sds-0003") < cards.index("sds-0004")
    assert "The model ran out of memory." in cards and "resume-sds-0004" in cards
    assert "sds-0001" not in cards and "sds-0005" not in cards
    cards = home.draw(asked(GUEST))["runs"]
    assert re.search(r'data-testid="cancel-sds-0002"[^>]* disabled title="Guests', cards)


# what there is to see -----------------------------------------------------------------------------


@pytest.fixture
def pruned(tables: Settings) -> Settings:
    """A finished run with weights of one tensor at every stage, and perplexities."""
    values = {"dense": 10.0, "first": 30.0, "control": 22.0, "redense": 15.0, "sds": 20.0}
    store(job(1), *(result(1, stage, "perplexity", value) for stage, value in values.items()))
    for place, stage in enumerate(("dense", "first", "redense", "sds")):
        counts = np.full(BINS, 10 - place)
        zeros = 10 * BINS - int(counts.sum())
        seen = TensorSnapshot(
            "model.layers.0.mlp.up_proj.weight",
            0,
            "mlp.up_proj",
            stage,
            10 * BINS,
            zeros,
            0,
            0,
            -1.0,
            1.0,
            counts,
            dict.fromkeys(BASE_STATISTICS, 1.0),
            (0.0,) * len(QUANTILES),
        )
        table, values = tensor_row(1, seen)
        store(table(**values))
    return tables


def test_a_method_is_remembered_by_its_figure(pruned: Settings) -> None:
    (shown,) = showcase.showcase()
    assert shown.figure.value == "50 %" and "22.0 only adjusted" in shown.figure.text
    assert [(label, text) for label, _, text, _ in shown.bars] == [
        ("Dense", "10.00"),
        ("First pruning", "30.00"),
        ("Re-dense", "15.00"),
        ("Second pruning (SDS)", "20.00"),
    ]
    hero = home.draw_exhibits(None, asked())
    assert "In cross-entropy, 37 %." in shown.figure.text  # ln 1.5 / ln 3
    assert (
        "of the perplexity loss from pruning recovered" in hero["methods"]
        and 'scope="row"' in hero["methods"]
    )
    assert home.draw_exhibits(hero["seen"], asked()) == {}
    moving = showcase.moving_histogram()
    assert moving is not None and moving["run"] == "sds-0001"
    assert [stage["name"] for stage in moving["stages"]] == ["dense", "first", "redense", "sds"]
    heights = [stage["heights"] for stage in moving["stages"]]
    assert {len(each) for each in heights} == {showcase.BARS}
    assert max(max(each) for each in heights) <= 1.0
    assert "perplexity of the whole model: 30.00." in moving["stages"][1]["said"]
    shorter = {"dense": 10.0, "first": 30.0, "first-blocks": 12.0}  # newer, but without SDS itself
    store(
        job(2, kept_stage="first-blocks"),
        *(result(2, stage, "perplexity", value) for stage, value in shorter.items()),
    )
    assert [each.job.id for each in showcase.showcase()] == [1]


def test_the_toy_is_not_shown_beside_a_real_model(pruned: Settings) -> None:
    """A newer run of it that lacks nothing."""
    assert showcase.moving_histogram()["run"] == "sds-0001"  # type: ignore[index]
    values = {"dense": 10.0, "first": 30.0, "sds": 20.0}
    real = job(3, config={"model": "smollm2-135m"})
    store(real, *(result(3, stage, "perplexity", value) for stage, value in values.items()))
    toys = (job(4, config={"model": "toy"}), job(5, config={"model": "sds-0004"}))
    store(*toys, *(result(n, s, "perplexity", v) for n in (4, 5) for s, v in values.items()))
    assert [each.job.id for each in showcase.showcase()] == [3]
    newest = [queries.job(n) for n in (5, 4, 3, 1)]
    assert [each.id for each in real_models_first(newest)] == [3, 5, 4, 1]


def test_the_changes_name_what_they_rest_on(tables: Settings) -> None:
    texts = {use: {"corpus": "wikipedia"} for use in ("training", "evaluation")}
    rests = {
        "threads": 1,
        "source": "dequantised from Q4_1: already rounded",  # as the example runs have it
        "text": texts,
    }
    figures = {
        "perplexity": 12.0,
        "bits_per_weight": 4.25,
        "speed_up": 2.19,
        "parameters": 5e6,
        "parameter_share": 0.05,
        "bytes/compressed-tensors": 113e6,
    }
    store(
        job(
            1,
            kind="dlqat",
            config={"model": "big", "bits": 4},
            kept_stage="dlqat",
            environment=rests,
        ),
        result(1, "dense", "perplexity", 10.0),
        *(result(1, "dlqat", name, value) for name, value in figures.items()),
    )
    hero = home.draw_exhibits(None, asked())["hero"]
    told = re.sub(r"\s+", " ", re.sub("<[^>]*>", " ", hero))
    assert "Size, from 16 bits 200 → 113 MB" in told and "Speed, 1 thread 1 × → 2.19 ×" in told
    assert "a 4-bit file and unpacked, so 4 bits cost it little. Trained and evaluated on" in told


def test_a_quick_look_that_lost_much_is_no_headline(tables: Settings) -> None:
    def run(n: int, kept: float, model: str = "big") -> None:
        config = {"model": model, "bits": 4}
        store(
            job(n, kind="dlqat", config=config, kept_stage="rtn"),
            result(n, "dense", "perplexity", 10.0),
            result(n, "rtn", "perplexity", kept),
            result(n, "rtn", "bits_per_weight", 4.25),
        )

    assert showcase.changes() is None
    for number, kept, headline in ((1, 17.0, 1), (2, 10.2, 2), (3, 17.4, 2), (4, 10.9, 4)):
        run(number, kept)
        found = showcase.changes()
        assert found and found[0].id == headline
    run(5, 10.0, "toy")
    assert showcase.changes()[0].id == 4  # type: ignore[index]
    page = home.draw_exhibits(None, asked())
    assert 'href="new-run?kind=dlqat&amp;from=dlqat-0004"' in page["methods"]


@pytest.mark.parametrize(
    ("toy", "words"),
    [
        (
            {"state": "queued"},
            "is queued behind 3 runs and starts in about 5\u00a0min. Watch it",
        ),
        ({"state": "starting"}, ""),  # "Running now" shows it
        ({"state": "running", "eta_s": 8.0}, ""),
        ({"state": "cancelling"}, "is being cancelled. Watch it"),
        ({"state": "succeeded"}, "has pruned the toy model in 1\u00a0min. See its weights"),
        ({"state": "failed"}, "has failed after 1\u00a0min. See what happened"),
    ],
)
def test_what_is_said_of_the_toy_is_its_state(
    tables: Settings, toy: dict[str, Any], words: str
) -> None:
    """One run is at work, for four minutes still, and two of half a minute wait before it."""
    half = {ESTIMATED_SECONDS: 30.0}
    store(
        job(1, state="running", eta_s=240.0),
        job(2, state="queued", environment=half),
        job(3, state="queued", environment=half),
        job(9, **toy),
    )
    said = home.draw_toy(["sds-0009"])["said"]["value"]
    assert re.sub("<[^>]*>", "", said).strip() == f"sds-0009 {words}" if words else not said


def test_the_toy_is_told_of_until_something_else_is_done(
    tables: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = home.home_act(pressed("toy"), asked())
    assert told["toy"] == ["sds-0001"] and "is queued" in told["said"]["value"]
    assert home.home_act(pressed("cancel", "sds-0001"), asked())["toy"] is None
    assert home.draw_toy(None) == {} == home.draw_toy("nonsense")


def test_the_fastest_text_races_the_first(tables: Settings) -> None:
    hostile, sides = "<b>x", ["toy", "sds-0002", "sds-0003"]
    assert showcase.race() is None
    with writing() as session:
        begun = conversations.begin(sides, False, examples.PACKAGE, session)
        prompt = conversations.add_prompt(session, begun.id, None, hostile, {}, "slimscope")
        for side, ms in enumerate((20.0, 5.0, 10.0), 1):
            step = {"ms": ms, "tokens": [["b", 0]], "rejected": []}
            rows = [step | {"ms": 30.0}, *[step] * 40, {"end": "limit", "rest": ""}]
            conversations.save_answer(prompt, side, "", [{"threads": 2}, *rows], session)
    found = showcase.race()
    assert (
        found is not None and found.gain == pytest.approx(4) and found.threads == "2\u00a0threads"
    )
    assert [lane["name"] for lane in found.lanes] == ["toy", "sds-0002"]
    assert found.lanes[0]["steps"][40:] == [[20.0, "b"], [0.0, "…"]]
    assert found.lanes[1]["steps"][1] == [5.0, "b"]
    html = home.HTML.racing(found)
    assert hostile not in html and f'href="playground?chat={found.turn.number}"' in html


def test_the_recorded_conversation_races_beside_the_examples(tables: Settings) -> None:
    examples.install_examples(check_row)
    methods = home.draw_exhibits(None, asked())["methods"]
    assert "dlqat-example writes 2.40\u00a0× as fast as smollm2-135m on 2\u00a0threads" in methods
    assert "204\u00a0tokens/s" in unescape(methods) and "Recorded one after the other" in methods
    home.home_act(pressed("remove-examples"), asked())
    assert showcase.race() is None


def test_a_guest_may_not_start_the_toy_or_touch_the_examples(
    pruned: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(home.examples, "bundled", lambda: {"sds-example": None})
    page = home.draw_exhibits(None, asked(GUEST))
    assert re.search(r'data-testid="run-toy"[^>]* disabled', page["hero"])
    assert re.search(r'data-do="restore-examples"[^>]* disabled', page["methods"])
