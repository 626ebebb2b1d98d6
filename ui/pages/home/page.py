"""The page *Home*: the effect of compression on a model, and the gain of each method over its
rival."""

import hashlib
import json
from itertools import islice
from typing import Any

import gradio as gr
from markupsafe import Markup

from backend.backup import examples
from backend.errors import SlimscopeError
from backend.models.sources.spec import TOY
from backend.queue import permissions, scheduling
from backend.queue.conversations import Turn
from backend.store import queries
from backend.store.session import now_ms
from backend.store.states import ACTIVE
from backend.store.tables import Job
from jobs.imported import check_row
from jobs.kind import kinds
from jobs.operations.submission import submit_run
from jobs.serving.transcript import parse_transcript
from ui.format import runs
from ui.frame import Page, current_user, live
from ui.gradio_patches import event_data
from ui.pages.home.showcase import TOY_NAME, exhibits, film
from ui.runs.actions import next_links
from ui.runs.html import error_of, progress, time_left, took
from ui.runs.queue_eta import start_times, start_words
from ui.runs.results import RunResults, find_job, kind_of, setting_summary
from ui.runs.rows import newest_of
from ui.templates import fragments
from ui.widgets.explorer import page_state
from ui.widgets.html import HtmlPanel, notice, show_error, show_html, show_success, skeleton
from ui.widgets.panel import Outputs, Updates

HTML = fragments("pages/home/page.html")
TOY_RECIPE = "SDS and its control"  # required to measure the gain of SDS
EXCERPT = 200  # characters of a recorded answer; the style sheet shows fewer
NEARLY_DONE = 0.9  # the remaining time is not shown beyond this share of the work


def build() -> None:
    page = Outputs(said=notice("home-said"), seen=page_state())
    with gr.Row(elem_classes="hero"):
        with gr.Column():
            page["words"] = HtmlPanel(elem_id="home-words")
            page["toy"] = HtmlPanel(elem_id="home-toy")
        page["film"] = HtmlPanel(skeleton(440), elem_id="home-film")
    page["methods"] = HtmlPanel(skeleton(280), elem_id="home-methods")
    show = page.named(draw), page["seen"], page.components
    live(*show)
    for name in ("words", "methods"):
        page[name].on_action(page.named(home_act), page.components, show)


def draw(seen: Any, request: gr.Request) -> Updates:
    """Updates of the toy run's progress; of everything else only after new results, or while a run
    works."""
    actor, mark = current_user(request), list(queries.figures_mark())
    seen = seen if isinstance(seen, dict) else {}
    job = newest_of(actor, TOY_NAME)
    toy = job.run if job and job.state in ACTIVE else str(seen.get("toy", ""))
    shown = film(toy)  # of the toy while it works, and afterwards in the same visit
    digest = hashlib.sha256(json.dumps(shown).encode()).hexdigest()
    marks = {"film": digest, "cards": mark, "toy": toy}
    parts = {"seen": marks, "toy": toy_html(job)}
    if seen.get("film") != marks["film"] or not seen:
        parts["film"] = HTML.film(shown) if shown else ""
    if seen.get("cards") == mark:
        return parts
    cards = [(card, next_links(card.job)) for card in exhibits()]
    has_examples = queries.example_count() > 0
    missing = bool(examples.bundled()) and not has_examples
    turn, off = examples.recorded_turn(), permissions.may_not_change(actor)
    return parts | {
        "words": HTML.words(permissions.may_not_add(actor), turn, excerpts(turn) if turn else ()),
        "methods": HTML.methods(cards, has_examples, missing, off),
    }


def excerpts(turn: Turn) -> list[tuple[str, str]]:
    """The setting of each model that answered the recorded prompt, and the start of its answer."""
    texts = {side: parse_transcript(each.transcript).text for side, each in turn.answers.items()}
    return [
        (setting_summary(job)[0] if (job := find_job(name)) else "Dense", texts[side][:EXCERPT])
        for side, name in enumerate(turn.names, 1)
        if side in texts
    ]


def toy_html(job: Job | None) -> Markup:
    """Progress of the visitor's toy from the first second, then its result."""
    if job is None:
        return Markup()
    if job.state in ACTIVE:
        start = start_words(start_times(scheduling.status()).get(job.id))
        left = time_left(job) if (job.share or 0) < NEARLY_DONE else ""
        return HTML.toy_at_work(job, progress(job), left or start)
    results = RunResults(kind_of(job), queries.results([job.id]), job)
    figure = results.key_figure
    said = figure.text if figure else ""
    return HTML.toy_ended(job, said, error_of(job), took(job, now_ms()), next_links(job))


def home_act(event: gr.EventData, request: gr.Request) -> Updates:
    user, said = current_user(request), show_html()
    try:
        match event_data(event).get("do"):
            case "toy":
                kind = next(iter(kinds().values()))
                efforts = [TOY_RECIPE, *islice(kind.presets, 1)]
                submit_run(kind.name, {"model": TOY}, user, ", ".join(efforts), TOY_NAME)
            case "remove-examples":
                said = show_success(f"{runs(len(examples.remove_examples(user)))} removed.")
            case "restore-examples":
                restored = examples.restore_examples(user, check_row)
                said = show_success(f"{runs(len(restored))} restored.")
    except SlimscopeError as error:
        said = show_error(error)
    return {"said": said}


PAGE = Page("Home", "", build, order=0, section="Home", key="h", heading=False)
