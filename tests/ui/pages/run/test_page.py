"""The page of one run: its figures, its curves, its log by byte, and the files it may give."""

import base64
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.models.sources.catalog import inspect
from backend.pruning.plan import pruning_plan
from backend.queue import removal
from backend.queue.actor import Actor
from backend.queue.artifacts import log_file, run_folder, work_folder
from backend.queue.permissions import READ_ONLY
from backend.settings import Settings
from backend.store import queries
from backend.store.session import now_ms, writing
from backend.store.tables import Artifact, Attempt, Job, StepTime
from jobs.evaluation.quality import window_losses
from jobs.runtime.row_buffer import profile_row
from jobs.sds.kind import SDSJob
from tests.queue.conftest import HOST
from tests.ui.conftest import mapped
from tests.ui.lab import asked, job, point, pressed, result, store
from ui.pages.run import job_log
from ui.pages.run import page as run
from ui.pages.run.details import config_card, disk_card, environment_card, plan_card, texts_card
from ui.pages.run.job_log import log_part, without_overprint
from ui.pages.run.outcome import certainty, finding, outcome, stage_tables, times
from ui.runs import actions
from ui.runs.results import RunResults, kind_of, size_before, size_saved
from ui.runs.weights import grid_description
from ui.widgets import html as saver


def download(name: str, file: str) -> Any:
    """The file, and what is said."""
    return run.download(pressed("download", name, file=file), asked())


def draw(name: str) -> dict[str, Any]:
    return run.draw(None, asked(id=name))


def test_stages_are_compared_on_the_same_windows(seeded: Settings) -> None:
    same = r"on the same \d+ windows"
    assert not re.search(same, draw("sds-0001")["results"])  # of a run that recorded no windows
    windows = np.linspace(2.0, 4.0, 8)
    better = windows - 0.05 - 0.001 * np.arange(8)
    noise = windows + 0.01 * np.array([1, -1, 1, -1, 1, -1, 1, -1])
    with writing() as session:
        for stage, losses in (
            ("sds", better),
            ("first", windows),
            ("control", better + noise - windows),
        ):
            session.add(mapped(profile_row(1, window_losses(stage, losses.tolist()))))
    table = draw("sds-0001")["results"].split("on the same 8 windows")[1]
    rows = re.findall(r"<tr>.*?</tr>", table, re.S)
    assert len(rows) == 3  # with the heading
    first, control = (
        next(r for r in rows if label in r) for label in ("First pruning<", "control")
    )
    assert "0.948" in first and "not significantly different" not in first
    assert "not significantly different" in control
    assert "Undecided, 95 % interval" in draw("sds-0001")["head"]


# figures ------------------------------------------------------------------------------------------


def test_a_run_shows_stages_in_order_and_the_kept_one_or_says_why_not(seeded: Settings) -> None:
    page = draw("sds-0001")
    figures = page["results"]
    labels = ["Dense", "First pruning", "Re-dense", "Second pruning (SDS)"]
    table = figures[figures.index("<table") :]
    places = [table.index(label) for label in labels]
    assert places == sorted(places)
    assert table.index("kept") > table.index("Second pruning (SDS)")
    assert page["stages_chart"].data[0].x[0] == 4.9
    assert "appear here" in draw("sds-0003")["results"]
    assert "No results recorded." in draw("sds-0004")["results"]
    assert not draw("sds-0004")["stages"]["visible"] and page["stages"]["visible"]
    assert "The model ran out of memory." in draw("sds-0004")["head"]
    shown = run.draw_curves(asked(id="sds-0003"))
    assert not shown["curves"]["visible"] and not shown["curve1"]["visible"]


def test_the_address_names_a_run_and_a_tab(seeded: Settings) -> None:
    for name in ("sds-9999", "", "x'y"):
        page = draw(name)
        assert "There is no run" in page["head"] and 'href="runs"' in page["head"]
        assert page["head"].count("<h1>") == 1
    assert run.on_open(asked(id="sds-9999"))["visible"] is False
    assert run.on_open(asked(id="sds-0001", tab="log"))["selected"] == "log"
    assert run.on_open(asked(id="sds-0001", tab="<b>"))["selected"] == "summary"


def test_a_plan_is_shown_by_its_parts_and_an_odd_one_is_left_out(
    seeded: Settings,
) -> None:
    config = SDSJob.model_validate({"exclude": "0.*", "overrides": "2.mlp.*=4:8"})
    whole = pruning_plan(config, inspect("toy").linears).model_dump(mode="json")
    cards = []
    for plan in (whole, None, {}, {**whole, "groups": 7}):
        with writing() as session:
            session.get_one(Job, 1).plan = plan
        cards.append(plan_card(queries.job(1)))
    rows = re.findall(r"<tr>.*?</tr>", cards[0], re.S)[1:]
    assert [re.findall(r"<td[^>]*>([^<]*)", row)[:2] for row in rows] == [
        ["11", "wanda, 2:4"],
        ["7", "left dense"],
        ["3", "wanda, 4:8"],
    ]
    assert "all others" in rows[0] and "and 3 more" in rows[1] and "2.mlp.up_proj" in rows[2]
    assert cards[1:] == ["", "", ""]


def test_the_kept_stage_has_its_reason_and_costs_their_estimates(
    seeded: Settings,
) -> None:
    rows, reason = [result(1, "sds", "heldout_loss", 2.1)], "Kept: <b>-3\u00a0%</b>, SDS-2."
    known = {"kept_reason": reason, "estimated_seconds": 60.0, "estimated_bytes": 2 * 10**9}
    job = Job(
        id=1,
        kind="sds",
        config={},
        started_at=1000,
        finished_at=91_000,
        peak_bytes=10**9,
        kept_stage="sds",
        environment=known,
    )
    steps = [StepTime(job_id=1, step=s, seconds=t) for s, t in (("redense", 30), ("prune", 60))]
    figures = RunResults(kind_of(job), rows, job, steps)
    html = outcome(job, figures, 0)
    assert "Kept: &lt;b&gt;-3\u00a0%&lt;/b&gt;, SDS-2." in certainty(job, figures)
    assert re.search("1.0\u00a0GB <span[^>]*>estimated 2.0\u00a0GB<", html)
    assert re.search("1\u00a0min\u00a030\u00a0s <span[^>]*>estimated 1\u00a0min<", html)
    waiting = Job(id=2, kind="sds", config={}, environment=known)
    assert "about 1\u00a0min (estimated)" in outcome(waiting, RunResults(None, []), 0)
    stopped = Job(id=2, kind="sds", config={}, environment=known, state="cancelled")
    assert "(estimated)" not in outcome(stopped, RunResults(None, []), 0)
    assert "reason" not in environment_card(job) and "stimated" not in environment_card(job)
    assert list(figures.seconds) == ["prune", "redense"]
    assert "width:50.0%" in times(figures) and "All else" not in times(figures, 90.0)
    assert re.search("All else: start, .*width:75.0%.*45", times(figures, 135.0), re.DOTALL)


@pytest.mark.parametrize(
    ("source", "parameters", "saved", "before", "after"),
    [
        (98e6, 135e6, 538e6, "270\u00a0MB in 16 bits", "538\u00a0MB in 32 bits (smaller as GGUF)"),
        (538e6, 135e6, 113e6, "270\u00a0MB in 16 bits", "113\u00a0MB"),
        (98e6, 0, 538e6, "98.0\u00a0MB", "538\u00a0MB"),
    ],
)
def test_sizes_are_told_against_16_bits(
    source: float, parameters: float, saved: float, before: str, after: str
) -> None:
    assert size_before(source, parameters) == before and size_saved(saved, parameters) == after


def test_what_only_the_kept_stage_has_is_a_fact_and_no_column(tables: Settings) -> None:
    rows = [
        result(1, "dense", "perplexity", 20.0),
        result(1, "gptq", "perplexity", 25.0),
        result(1, "dlqat", "perplexity", 21.0),
        result(1, "gptq", "bits_per_weight", 4.25),
        result(1, "dlqat", "bits_per_weight", 4.25),
        result(1, "dlqat", "speed_up", 2.19),
        result(1, "dense", "tokens_per_second", 31.0),
        result(1, "gptq", "kl_to_dense", 0.3),
        result(1, "dlqat", "tokens_per_second", 75.0),
        result(1, "dense", "heldout_loss", 2.5),
        result(1, "dlqat", "heldout_loss", 2.6),
    ]
    reason = "Kept: DL-QAT. Its perplexity is 16.1 % lower than with GPTQ (13.8 to 18.2 %)."
    told = Job(
        id=1, kind="dlqat", config={}, kept_stage="dlqat", environment={"kept_reason": reason}
    )
    results = RunResults(kind_of(told), rows, told)
    heads = re.findall("<th [^>]*><a[^>]*>([^<]*)<", stage_tables(results))
    assert heads == [
        "Stage",
        "Perplexity",
        "Held-out loss, nats per token",
        "KL to dense, nats",
    ]
    html = outcome(told, results, 0)
    assert re.findall("<dt><a[^>]*>([^<]*)</a></dt><dd>([^<]*)", html) == [
        ("Speed-up, ×", "2.190"),
        ("Bits per weight", "4.250"),
    ]
    assert reason in certainty(told, results)
    assert finding(told, results).startswith(
        "DL-QAT reaches perplexity 21.0, 16.0 % lower than GPTQ"
    )
    assert "the median of the rounds" in html
    assert "<b>Small loss: perplexity 21.00 instead of 20.00, 5.0 % higher.</b></p>" in html
    odd = [result(1, "dense", "perplexity", 0.0), result(1, "dlqat", "perplexity", 21.0)]
    assert "lost" not in outcome(told, RunResults(kind_of(told), odd, told), 0)  # of an import


def test_a_rounded_tensor_is_told_by_its_grid(tables: Settings) -> None:
    rounded, row, dense = (f"model.layers.{n}.mlp.up_proj" for n in range(3))
    group = {
        "bits": 4,
        "group_size": 64,
        "grid": "offset",
        "range_search": "minmax",
        "layers": [rounded],
    }
    whole = group | {"bits": 2, "group_size": 0, "layers": [row]}
    plan = {"stages": ["dense", "gptq"], "groups": [group, whole], "dense": [dense]}
    store(job(1, kind="dlqat", plan=plan), job(2, kind="dlqat", plan={"odd": 1}), job(3))
    stored = [queries.job(n) for n in (1, 2, 3)]
    told = [grid_description(stored[0], f"{name}.weight") for name in (rounded, row, dense)]
    assert told == [
        f"every {group} values in this layer; layers have 2 to 4 bits"
        for group in ("group of 64 weights has at most 16", "row has at most 4")
    ] + [""]
    assert not any(grid_description(each, f"{rounded}.weight") for each in stored[1:])


def test_whatever_is_missing_or_odd_is_left_out() -> None:
    assert texts_card({}) == "" == texts_card({"text": "odd"})
    assert "toystories" in texts_card({"text": {"calibration": {"corpus": "toystories"}}})
    bare = Job(id=1, kind="gone", name="", owner="x", config={"a": 1}, environment={}, state="lost")
    assert environment_card(bare) == ""
    assert "slimscope submit" not in config_card(bare)
    shorter = Job(id=1, kind="sds", config={"context": 256, "reconstruct": 0})
    told = config_card(shorter)
    assert "<td>256 tokens</td><td>512, or the maximum of the model if less</td>" in told
    odd = Job(id=1, kind="sds", config={}, environment={"versions": {"torch": "2"}, "new": [1, 2]})
    assert "torch 2" in environment_card(odd)
    assert RunResults(None, []).kept is None
    steps = [StepTime(job_id=1, step=s, seconds=2.0) for s in ("DL-QAT", "weight_adjustment")]
    told = times(RunResults(None, [], None, steps))
    assert ">DL-QAT<" in told and ">Weight adjustment<" in told
    assert without_overprint("10%\r50%\r100%\nnext\r\n") == "100%\nnext\r\n"
    assert without_overprint("one\n10%\r50%\r") == "one\n"  # its next state is on its way
    assert without_overprint("") == ""


# curves -------------------------------------------------------------------------------------------


def test_the_curves_are_a_wall_in_stage_order_and_the_loss_leads(seeded: Settings) -> None:
    shown = run.draw_curves(asked(id="sds-0002"))
    assert [line.name for line in shown["curve1_chart"].data] == [
        "First pruning",
        "Re-dense",
        "Second pruning (SDS)",
    ]
    assert "n = 3 points" in shown["curve1_note"] and shown["curve1_table"].count("<tr>") == 4
    assert shown["curve1"]["visible"] and not shown["curve2"]["visible"]
    loss = [point(2, "loss@sds", step, value) for step, value in ((1, 2.0), (2, 1.0))]
    store(*loss, point(2, "heldout@sds", 0, 3.0))
    shown = run.draw_curves(asked(id="sds-0002"))
    assert "Loss falls from 2.00 to 1.00" in shown["curve1_title"]
    assert next(line.name for line in shown["curve2_chart"].data) == "First pruning"
    assert shown["curve2"]["visible"] and not shown["curve3"]["visible"]  # one point: no curve


def test_a_deleted_run_says_so_and_offers_to_bring_it_back(seeded: Settings) -> None:
    removal.remove([1], HOST)
    head = draw("sds-0001")["head"]
    assert "This run was deleted. It can be restored for a day." in head
    assert 'data-do="restore"' in head and 'data-do="retry"' not in head
    removal.purge([1], HOST)
    assert "Its files and figures are gone." in draw("sds-0001")["head"]


# log ----------------------------------------------------------------------------------------------


@pytest.fixture
def logged(seeded: Settings) -> Path:
    """The log of sds-0002's first attempt."""
    with writing() as session:
        session.get_one(Job, 2).attempts_made = 1
    path = log_file("sds-0002", 1)
    path.parent.mkdir(parents=True)
    path.write_text("one\n")
    return path


def test_the_log_grows_by_what_is_new(logged: Path) -> None:
    first = log_part(queries.job(2), None)
    assert first and (first["start"], first["text"]) == (0, "one\n")
    cursor = {"source": first["source"], "end": first["end"]}
    assert log_part(queries.job(2), cursor) is None
    with logged.open("a") as file:
        file.write("two é\n")
    more = log_part(queries.job(2), cursor)
    assert more and (more["start"], more["text"]) == (first["end"], "two é\n")
    undrawn = log_part(queries.job(2), first)  # as its tab has not been opened yet
    assert undrawn and (undrawn["start"], undrawn["text"]) == (0, "one\ntwo é\n")
    assert log_part(queries.job(2), undrawn) is None, "until there is more"
    logged.write_text("x" * 100_000)
    found = log_part(queries.job(2), {"source": "sds-0002/1", "end": 4})
    assert found and found["start"] == 0 and len(found["text"]) < 100_000


def test_another_run_or_attempt_starts_its_log_anew(logged: Path) -> None:
    other = log_part(queries.job(2), {"source": "sds-0009/1", "end": 99})
    assert other and other["text"] == "one\n"
    waiting = log_part(queries.job(3), None)
    assert waiting and waiting["text"] == "" and "when the run starts" in waiting["title"]
    assert log_part(queries.job(3), {"source": waiting["source"], "end": 0}) is None
    with logged.open("ab") as file:
        file.write(b"\xff\xfe\n")
    more = log_part(queries.job(2), {"source": "sds-0002/1", "end": 4})
    assert more and (more["start"], more["end"]) == (4, 7)


HERE = {"source": "sds-0002/1"}


@pytest.mark.parametrize(
    "cursor",
    [
        "text",
        7,
        [],
        {},
        {"source": None, "end": None},
        *({**HERE, "end": end} for end in (-1, 10**12, "x", None, 2.5)),
        {**HERE, "text": "x", "start": "x", "end": -1},
    ],
)
def test_an_odd_cursor_gets_the_log_from_its_end_or_nothing(logged: Path, cursor: Any) -> None:
    found = log_part(queries.job(2), cursor)
    known = isinstance(cursor, dict) and cursor.get("source") == HERE["source"]
    assert (found is None and known) or (found and (found["start"], found["text"]) == (0, "one\n"))


def test_the_whole_log_can_be_saved(logged: Path) -> None:
    again = log_file("sds-0002", 2)
    again.parent.mkdir()
    again.write_text("two\n")
    with writing() as session:
        session.get_one(Job, 2).attempts_made = 2
    file = job_log.save_log(asked(id="sds-0002"))["file"]
    assert file["name"] == "sds-0002-log.txt"
    text = base64.b64decode(file["data"]).decode()
    assert text == "===== attempt 1 =====\none\n===== attempt 2 =====\ntwo\n"
    nothing = job_log.save_log(asked(id="sds-0003"))
    assert "The run has not started yet." in nothing["message"]["value"] and "file" not in nothing


# files --------------------------------------------------------------------------------------------


@pytest.fixture
def model(seeded: Settings) -> Path:
    """A model folder that sds-0001 left."""
    folder = run_folder("sds-0001") / "model"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (run_folder("sds-0001") / "secret.txt").write_text("not an artifact")
    row = Artifact(
        job_id=1,
        kind="model",
        path="sds-0001/model",
        bytes=2,
        sha256="ab" * 32,
        created_at=now_ms(),
    )
    with writing() as session:
        session.add(row)
    return folder


def test_artifacts_tell_where_they_are_and_give_small_files_alone(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    html = draw("sds-0001")["files"]
    assert str(model) in html and "ab" * 32 in html
    assert "from_pretrained" in html and "config.json" in html
    file, _ = download("sds-0001", "sds-0001/model/config.json")
    assert (file["name"], base64.b64decode(file["data"])) == ("config.json", b"{}")
    file, _ = download("sds-0002", "sds-0001/model/config.json")
    assert "data" not in file
    monkeypatch.setattr(saver, "AT_MOST", 1)
    file, said = download("sds-0001", "sds-0001/model/config.json")
    assert "data" not in file and "at most" in said["value"]
    (model / "config.json").unlink()
    model.rmdir()
    assert "deleted or moved" in draw("sds-0001")["files"]


@pytest.mark.parametrize(
    "path",
    [
        "sds-0001/secret.txt",
        "../results.db",
        "sds-0001/model/../secret.txt",
        "/etc/passwd",
        "",
        "sds-0001/model",
        "sds-0001/model/link",
        "sds-0001/model/a\0b",
        "sds-0001/model/\ud800",
        "sds-0001/model/" + "x" * 5000,
        "x" * 5000,
        "../" * 50,
        ".",
    ],
)
def test_nothing_else_is_given(model: Path, path: str) -> None:
    (model / "link").symlink_to("/etc/passwd")
    file, said = download("sds-0001", path)
    assert "data" not in file and 'role="alert"' in said["value"]


# disk space ---------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(seeded: Settings) -> Path:
    """A checkpoint of sds-0004, which failed, and its log."""
    with writing() as session:
        session.get_one(Job, 4).attempts_made = 1
    file = work_folder("sds-0004") / "step-1" / "weights.safetensors"
    log_file("sds-0004", 1).parent.mkdir(parents=True)
    log_file("sds-0004", 1).write_text("x" * 50)
    file.parent.mkdir(parents=True)
    file.write_bytes(b"x" * 3_000_000)
    return file


def test_the_disk_space_of_a_run_is_told_and_freed_by_hosts(checkpoint: Path) -> None:
    html = disk_card(queries.job(4), Actor("guest"))
    assert "3.0\u00a0MB" in html and "disabled" in html and READ_ONLY in html
    page = draw("sds-0004")
    assert "Checkpoints</dt><dd>3.0\u00a0MB" in page["disk"] and "Total" in page["disk"]
    assert "Resuming it will start from the beginning." in page["disk"]  # is asked before
    assert "No checkpoint is left" not in page["head"]
    said = actions.act(pressed("free", "sds-0004"), asked())
    assert "3 MB freed." in said["value"] and not checkpoint.exists()
    after = draw("sds-0004")
    assert "Free space" not in after["disk"] and "Logs</dt><dd>50\u00a0B" in after["disk"]
    assert "No checkpoint is left: resuming starts from the beginning." in after["head"]
    assert "checkpoints deleted" in after["history"] and "3 MB freed" in after["history"]
    assert "It starts from the beginning." in actions.run_action("resume", "sds-0004", HOST)


def test_a_resume_from_a_checkpoint_says_so(checkpoint: Path) -> None:
    assert "resumes from its last checkpoint" in actions.run_action("resume", "sds-0004", HOST)


@pytest.mark.parametrize("run", ["sds-0002", "sds-0003"])
def test_nothing_is_freed_of_a_run_that_has_not_ended(seeded: Settings, run: str) -> None:
    file = work_folder(run) / "step-1"
    file.mkdir(parents=True)
    (file / "x").write_text("x")
    assert "Checkpoints" in draw(run)["disk"] and "Free space" not in draw(run)["disk"]
    assert "has nothing to free" in actions.act(pressed("free", run), asked())["value"]


def test_the_config_shows_what_differs_and_attempts_are_listed(
    seeded: Settings,
) -> None:
    html = config_card(queries.job(1))
    assert "Pruner" in html and "magnitude" in html
    assert "Damping" not in html
    assert "slimscope submit sds" in html
    attempt = Attempt(
        job_id=1,
        n=1,
        token="t",
        engine="local",
        launched_at=1,
        started_at=1000,
        ended_at=61_000,
        outcome="succeeded",
        exit_code=0,
        resumed_from="block-3",
    )
    with writing() as session:
        session.add(attempt)
    assert "block-3" in draw("sds-0001")["history"]
