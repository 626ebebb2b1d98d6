"""The page Compare: what differs, what came out, curves and weights over each other."""

import re
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file
from sqlalchemy import update

from backend.store import tensors
from backend.store.session import writing
from backend.store.tables import Event, Job, MetricPoint, Result
from jobs.evaluation.quality import window_losses
from jobs.runtime.row_buffer import profile_row
from tests.ui.conftest import HOSTILE, TOY, Fill, mapped, stages_of, tensor_rows
from tests.ui.lab import (
    OTHER,
    asked,
    job,
    measured,
    model_folder,
    point,
    result,
    store,
)
from ui.pages.compare import page as compare
from ui.pages.compare.comparison import kept_share, word_changes
from ui.theme import LIGHT

TWO = {"ids": "sds-0001,sds-0002"}
SPARSE = "50% · sparsegpt"  # the second run
WHOLE = {"ids": "sds-0001,sds-0002,sds-0003,sds-0004"}


def curve(number: int, name: str, values: list[float]) -> list[MetricPoint]:
    return [point(number, name, i, v) for i, v in enumerate(values)]


@pytest.fixture(autouse=True)
def lab(filled: Fill) -> None:
    filled(store_runs)


def store_runs() -> None:
    """Four runs: the last on another text, the third with no curve, the first two with weights."""
    sparse = {"model": "toy", "pattern": "50%", "base": "sparsegpt", "seed": 0, "control": True}
    toy = load_file(TOY)
    store(
        job(1, name=HOSTILE),
        job(2, config=sparse),
        job(
            3,
            environment={"device": "cpu", "threads": 2, "versions": {"torch": "2.9"}},
            kept_stage="control",
        ),
        job(4),
        *measured(1, 12.0, 0.5),
        *measured(2, 11.0, 0.4),
        *measured(3, 30.0, 0.7),
        *measured(4, 9.0, 0.5, text=OTHER),
        *(model_folder(n, size) for n, size in ((1, 500), (2, 400))),
        *curve(1, "error@sds", [0.1, 0.2, 0.3]),
        *curve(2, "error@sds", [0.1, 0.1, 0.2]),
        *curve(2, "loss", [4.0, 3.0]),
        *curve(4, "loss", [1.0]),
        *tensor_rows(1, toy),
        *tensor_rows(2, toy, stages=2),
    )


def drawn(**address: str) -> dict[str, Any]:
    return compare.draw(asked(**address))


def cells(html: str, row: str) -> list[str]:
    """The text of the cells of one row of a comparison."""
    found = re.search(rf'<th scope="row">(?:<a[^>]*>)?{row}.*?</tr>', html)
    assert found, row
    return [re.sub(r"<[^>]+>", " ", c).strip() for c in re.findall(r"<td.*?</td>", found[0])]


def curves(curve: str | None = None) -> dict[str, Any]:
    return compare.draw_curves(curve, asked(**WHOLE))


# which runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("ids", ["sds-0001", "sds-0001,sds-0001", "sds-0999,x", "'; drop", "<b>"])
def test_fewer_than_two_runs_lead_to_the_table(ids: str) -> None:
    page = drawn(ids=ids)
    assert 'href="runs"' in page["head"] and page["body"]["visible"] is False
    assert 'href="compare"' in page["head"]
    assert compare.draw_curves(None, asked(ids=ids))["lines_chart"] == compare.NO_CURVES
    assert compare.draw_weights(None, asked(ids=ids))["weights_chart"] == compare.NO_WEIGHTS


def test_without_runs_in_the_address_the_newest_of_one_model_are_compared() -> None:
    newest = [job(n, kind="benchmark", state="succeeded") for n in range(11, 14)]
    store(*newest, job(14, state="failed"))  # without a perplexity to compare
    assert compare.compared(asked()).runs == ["sds-0001", "sds-0002", "sds-0003"]
    assert compare.compared(asked(base="sds-0002")).base.job.run == "sds-0002"
    assert "sds-0001,sds-0002,sds-0003" in drawn()["head"] and drawn()["body"]["visible"]


def test_the_address_names_six_runs_at_most_and_the_baseline() -> None:
    for base, wanted in (
        ("<b>", "sds-0001"),
        ("", "sds-0001"),
        ("sds-0002", "sds-0002"),
        ("sds-0099", "sds-0001"),
    ):
        assert compare.compared(asked(**TWO, base=base)).base.job.run == wanted
        head = drawn(**TWO, base=base)["head"]
        offered = re.findall(r'data-testid="base-([\w-]+)"', head)
        assert {*offered, wanted} == {"sds-0001", "sds-0002"} and wanted not in offered
        assert head.count('data-testid="baseline"') == head.count('aria-current="true"') == 1
    store(*[job(n) for n in range(5, 9)])
    of = compare.compared(asked(ids=",".join(f"sds-{n:04d}" for n in range(1, 9))))
    assert len(of.rows) == 6


# what was asked -----------------------------------------------------------------------------------


def test_only_settings_and_machines_that_differ_are_shown() -> None:
    html = drawn(**TWO)["config"]
    assert cells(html, "Pattern") == ["2:4", "50%  (differs)"]
    assert cells(html, "Pruner") == ["wanda", "sparsegpt  (differs)"]
    assert "Model" not in html and "4 settings are the same" in html
    html = drawn(ids="sds-0001,sds-0003")["config"]
    assert cells(html, "Threads used") == ["–", "2  (differs)"]
    assert cells(html, "Version of torch") == ["–", "2.9  (differs)"]
    html = drawn(ids="sds-0001,sds-0004")["config"]
    assert "<table" not in html and "settings are the same" in html


# what came out ------------------------------------------------------------------------------------


def test_deltas_have_sign_arrow_and_the_verdict_their_metric_declares() -> None:
    html = drawn(**WHOLE)["results"]
    perplexity = cells(html, "Perplexity")
    assert (
        perplexity[0] == "12.00" and "−1.00 (−8.3\u00a0%)" in perplexity[1] and "▼" in perplexity[1]
    )
    assert re.search(r'class="delta better"[^>]*><i[^>]*>▼</i>−1.00', html)
    zeros = cells(html.partition("<details")[2], "Zeros, %")
    assert zeros[2] == "–"  # folded away where only some runs have them
    assert "▼" in zeros[1] and "−10.00" in zeros[1]
    assert re.search(r'class="delta worse"[^>]*><i[^>]*>▼</i>−10.00', html)
    assert "▼" in cells(html, "Size on disk")[1]
    assert (
        "50% · sparsegpt 11.00, 8.3 % lower than 2:4 · wanda 12.00" in drawn(**TWO)["stages_title"]
    )


def test_a_single_duration_is_not_judged_and_nothing_across_models() -> None:
    store(
        job(5, finished_at=90_000),
        job(6, config={"model": HOSTILE[:20]}),
        *measured(5, 12.0, 0.5),
        *measured(6, 9.0, 0.5),
    )
    longer = drawn(ids="sds-0001,sds-0005")["results"]
    assert "+30\u00a0s" in cells(longer, "Duration")[1] and "delta worse" not in longer
    page = drawn(ids="sds-0001,sds-0006")
    assert "Not comparable" in page["head"] and "delta" in page["results"]
    assert not re.search(r"delta (better|worse)", page["results"])
    assert all("<img" not in str(part) for part in page.values()), "a model's name is no markup"


def test_sizes_in_two_file_formats_are_one_row() -> None:
    sizes = ((1, "slimscope", 80e6), (1, "gguf", 90e6), (2, "compressed-tensors", 113e6))
    store(*(result(run, "sds", f"bytes/{name}", value) for run, name, value in sizes))
    one, other = cells(drawn(**TWO)["results"], "Size")
    assert one == "80.0\u00a0MB, slimscope" and other.startswith("113\u00a0MB, compressed-tensors")
    assert "▲" in other and "+33.0\u00a0MB" in other


def test_what_was_measured_on_another_text_is_not_compared() -> None:
    html = drawn(**WHOLE)["results"]
    other = cells(html, "Perplexity")[3]
    assert other.startswith("9.000") and "different text" in other and "▼" not in other
    page = drawn(**WHOLE)
    assert "sds-0004" in page["stages_note"]
    assert {t.name for t in page["stages_chart"].data} == {
        "2:4 · wanda · sds-0001",  # equal settings
        SPARSE,
        "2:4 · wanda · sds-0003",
    }
    assert "Not comparable" in page["head"]
    html = drawn(**TWO)["stages_table"]
    assert cells(html, "Second pruning")[:2] == ["12.00", "11.00"]


def test_runs_on_the_same_windows_are_compared_window_by_window() -> None:
    assert "× 0" not in drawn(**WHOLE)["results"]  # no losses were recorded
    windows = np.linspace(2.0, 4.0, 8)
    noise = 0.01 * np.array([1, -1] * 4)
    for number, losses in ((1, windows), (2, windows - 0.1 + noise), (4, windows)):
        store(mapped(profile_row(number, window_losses("sds", losses.tolist()))))
    head = drawn(**TWO)["head"]
    assert f"{SPARSE} has a perplexity 9.5 % lower than 2:4 · wanda (" in head
    assert re.search(r"against 12.00; dense [\d.]+\.<", head)
    found = cells(drawn(**WHOLE)["results"], "Perplexity")
    low, high = map(float, re.search(r"× (\S+) to ([\d.]+)", found[1]).groups())
    assert low < 0.905 < high and "not significantly" not in found[1]
    assert all(" to " not in found[n] for n in (0, 2, 3))  # itself, no losses, another text


def test_zeros_of_a_run_that_was_not_to_prune_are_those_of_its_weights() -> None:
    toy = load_file(TOY)
    store(job(5, kept_stage="first"), *tensor_rows(5, toy, stages=2))
    store(result(5, "first", "perplexity", 9.0))
    shared = drawn(ids="sds-0001,sds-0005")["results"].partition("<details")[0]
    layers = [w.float() for name, w in toy.items() if ".layers." in name and "norm" not in name]
    zero = sum((stages_of(w)["first"] == 0).sum().item() for w in layers)
    share = 100 * zero / sum(w.numel() for w in layers)
    assert cells(shared, "Zeros, %")[1] == f"{share:.2f}"


def test_what_windows_do_not_tell_apart_is_neither_better_nor_worse() -> None:
    windows, noise = np.linspace(2.0, 4.0, 8), np.array([1, -1] * 4)
    for number, losses in ((1, windows), (2, windows - 0.01 + 0.2 * noise)):
        store(mapped(profile_row(number, window_losses("sds", losses.tolist()))))
    told = drawn(**TWO)
    assert "Undecided: " in told["head"] and "not significantly" in told["stages_title"]
    page = drawn(**WHOLE)["results"]
    assert "not significantly different" in page
    assert re.search(r'class="delta even"[^>]*><i[^>]*>▼</i>−1.00', page)
    assert re.search(r'class="delta worse"[^>]*><i[^>]*>▼</i>−10.00', page)  # of the zeros


# curves -------------------------------------------------------------------------------------------


def test_every_run_that_drew_a_curve_is_in_it_and_single_points_are_none() -> None:
    shown = curves()
    choice, figure = shown["curve"], shown["lines_chart"]
    assert [value for _, value in choice["choices"]] == ["error@sds", "loss"]
    assert choice["value"] == "error@sds"
    assert [trace.name for trace in figure.data] == ["2:4 · wanda · sds-0001", SPARSE]
    assert f"sds-0001 3, {SPARSE} 3" in shown["lines_note"]
    assert shown["lines_table"].count("<tr>") == 4
    names = [trace.name for trace in curves("loss")["lines_chart"].data]
    assert names == [SPARSE, "2:4 · wanda · sds-0004"]
    for ids in ("sds-0003,sds-0004", "sds-0002,sds-0003"):  # none, and of one of them alone
        shown = compare.draw_curves(None, asked(ids=ids))
        assert shown["lines_chart"] == compare.NO_CURVES and not shown["card"]["visible"]


def test_runs_of_two_methods_are_compared_by_their_errors_and_not_first_by_their_memory() -> None:
    with writing() as session:
        session.execute(update(MetricPoint).where(MetricPoint.job_id == 2).values(stage="dlqat"))
        session.add_all(
            point(run, "memory_mb", n, 1e3, axis="seconds") for run in (1, 2) for n in range(3)
        )
    shown = compare.draw_curves(None, asked(**TWO))
    assert shown["curve"]["value"] == "memory_mb", "of what one kept there are no weights"
    with writing() as session:
        session.execute(update(Job).where(Job.id == 2).values(kept_stage="first"))
        session.add(Event(job_id=2, at=0, type="succeeded", actor="supervisor"))
    shown = compare.draw_curves(None, asked(**TWO))
    names = [value for _, value in shown["curve"]["choices"]]
    assert names == ["error@kept stages", "memory_mb"] and names[0] == shown["curve"]["value"]
    assert "each the mean over a block" in shown["lines_note"]
    assert len(shown["lines_chart"].data) == 2 and len(shown["lines_chart"].data[0].x) > 1


def test_the_address_says_which_curve_is_open() -> None:
    for curve, shown in (("loss", "loss"), ("<b>", "error@sds")):
        opened = compare.draw_curves(None, asked(**WHOLE, curve=curve))
        assert opened["curve"]["value"] == shown


# weights ------------------------------------------------------------------------------------------


def test_a_tensor_is_shown_as_each_run_left_it_over_the_dense_one() -> None:
    shown = compare.draw_weights(None, asked(**WHOLE))
    choice, figure = shown["tensor"], shown["weights_chart"]
    note, table = shown["weights_note"], shown["weights_table"]
    dense, pruned = (trace.name for trace in figure.data)
    assert dense == "Dense · no exact zeros"
    assert pruned.startswith("2:4 · wanda · sds-0001 · Second pruning (SDS) · ")
    assert f"Not stored by {SPARSE}, 2:4" in note  # its kept stage is not stored
    assert choice["value"] == "model.layers.0.self_attn.q_proj.weight"
    for trace in figure.data[1:]:
        (snapshot,) = (
            s for s in tensors.tensor_snapshots("sds-0001", choice["value"]) if s.stage == "sds"
        )
        drawn = sum(trace.customdata)
        assert drawn + snapshot.zeros + snapshot.below + snapshot.above == snapshot.n
    assert "sds-0001 · Second pruning (SDS)" in table
    shown = compare.draw_weights(None, asked(ids="sds-0003,sds-0004"))
    assert shown["weights_chart"] == compare.NO_WEIGHTS
    name = "model.layers.2.mlp.down_proj.weight"
    assert compare.draw_weights(None, asked(**TWO, tensor=name))["tensor"]["value"] == name
    odd = compare.draw_weights("nonsense", asked(**TWO))
    assert odd["tensor"]["value"].endswith("q_proj.weight")


def samples(number: int, stage: str, texts: dict[str, str]) -> Result:
    found = [{"prompt": prompt, "text": text, "tokens": []} for prompt, text in texts.items()]
    return result(number, stage, "greedy_agreement", 0.5, samples=found)


def test_texts_after_the_same_prompt_are_compared_word_by_word() -> None:
    evaluation = {"kind": "evaluation", "config": {"model": "sds-0002"}, "kept_stage": None}
    store(
        job(5, **evaluation),
        samples(1, "sds", {"A cat": "sat on the red mat.", "Alone": "one"}),
        samples(5, "model", {"A cat": "sat on a mat. <b>"}),
    )
    unwritten = compare.draw(asked(ids="sds-0002,sds-0003"))["texts"]
    assert 'href="playground?sides=sds-0002%2Csds-0003"' in unwritten
    card = compare.draw(asked(**TWO))["texts"]
    assert f"{SPARSE} writes 60\u00a0% of the baseline&#39;s words" in card
    assert "sat on<del> the red</del><ins> a</ins> mat.<ins> &lt;b&gt;</ins>" in card
    assert "Alone" not in card, "only one run has written after it"
    other = compare.draw(asked(**TWO, base="sds-0002"))["texts"]
    assert "<ins> the red</ins>" in other and "2:4 · wanda writes 60\u00a0%" in other


@pytest.mark.parametrize(
    ("before", "after", "kept"),
    [("", "new", 1.0), ("a b c d", "", 0.0), ("a b c d", "d a b", 0.5), ("x  y", "x y", 1.0)],
)
def test_the_share_of_words_kept(before: str, after: str, kept: float) -> None:
    assert kept_share(before, after) == kept
    read = "".join(p.text for p in word_changes(before, after) if p.change != "del")
    assert read == after


def test_the_baseline_is_a_line_of_the_color_of_text_in_every_picture() -> None:
    request = asked(**TWO, base="sds-0001")
    for figure in (
        compare.draw_curves(None, request)["lines_chart"],
        compare.draw_weights(None, request)["weights_chart"],
    ):
        (line,) = (trace.line for trace in figure.data if trace.name.startswith("2:4"))
        assert (line.color, line.dash) == (LIGHT.text, "solid")


def benchmark(number: int, threads: int, speed_up: float) -> list[Any]:
    """A benchmark of two decoders; the speed-up of the vanilla decoder is 1."""
    figures = {"vanilla": (1.0, 1.0), "lookup": (speed_up, 1.4)}
    machine = {"device": "cpu", "threads": threads}
    return [
        job(number, kind="benchmark", environment=machine, kept_stage=None),
        result(number, "run", "tokens_per_second", 50.0),
        *(
            result(number, decoder, name, value)
            for decoder, values in figures.items()
            for name, value in zip(("speed_up", "accepted_length"), values, strict=True)
        ),
    ]


def test_benchmarks_on_equal_threads_stand_side_by_side() -> None:
    store(*benchmark(11, 2, 1.2), *benchmark(12, 2, 1.5), *benchmark(13, 1, 9.0))
    page = drawn(ids="benchmark-0011,benchmark-0012,benchmark-0013")
    assert page["benchmarks"]["visible"]
    for panel, most in (("speedup", 1.5), ("accepted", 1.4)):
        figure = page[f"{panel}_chart"]
        assert [trace.name for trace in figure.data] == ["run 11", "run 12"]
        assert max(figure.data[1].x) == most
        assert "run 13" in page[f"{panel}_note"]
        assert "best" not in page[f"{panel}_title"]
    unequal = drawn(ids="benchmark-0011,benchmark-0013")
    assert not unequal["benchmarks"]["visible"]
    assert unequal["speedup_chart"] == compare.NO_BENCHMARKS
    assert not drawn(**TWO)["benchmarks"]["visible"]


def test_errors_against_different_sources_are_not_ranked() -> None:
    title = compare.draw_curves(None, asked(**TWO))["lines_title"]
    assert f"(SDS): {SPARSE} 20.00\u00a0%, 33.3 % lower than 2:4 · wanda 30.00" in title
    with writing() as session:
        other = {"model": "sds-0001"}
        session.execute(update(Job).where(Job.id == 2).values(config=other))
        session.add(Event(job_id=2, at=0, type="succeeded", actor="supervisor"))
    shown = compare.draw_curves(None, asked(**TWO))
    assert "lower than" not in shown["lines_title"] and "not comparable" in shown["lines_note"]
