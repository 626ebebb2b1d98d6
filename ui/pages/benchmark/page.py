"""Speed: is decoding with draft tokens faster on this machine, and what limits it?"""

from operator import itemgetter

import gradio as gr
from markupsafe import Markup

from backend.store import queries
from backend.store.states import ACTIVE
from backend.store.tables import Job
from jobs.benchmark import kind as benchmark
from jobs.benchmark.report import DecoderReport
from jobs.submit import command_line
from ui.charts.chart import Chart
from ui.frame import Page, live, query, url_sync
from ui.pages.benchmark import charts, data
from ui.pages.benchmark.data import Benchmark
from ui.pages.benchmark.draft_tree import tree_chart
from ui.runs.actions.single import clone_link
from ui.runs.html import error_of, model_name, progress
from ui.runs.results import find_job
from ui.runs.weights import run_choices
from ui.templates import fragments
from ui.widgets.dropdown import dropdown
from ui.widgets.html_panel import LATEST, HtmlPanel
from ui.widgets.panel import Outputs, Panel, Updates, nothing, page_charts, updates

HTML = fragments("pages/benchmark/page.html")
NO_TASKS = nothing("All prompts of this run belong to one task.")
NO_TREE = nothing("No drafter in this run has a tree whose accepted tokens were counted.")
CONTROLS = ("run", "drafter")
SPEED = Panel(
    "bars",
    "Speed-up",
    "Is it faster on this machine? Dashed: vanilla decoding in the same run.",
    300,
)
GAIN = Panel(
    "yield",
    "Tokens per step and break-even",
    "Does a step yield more tokens than it costs? A bar beyond its line is a gain. Ring: what "
    "the drafter's training predicted. The speed-up is not quite the ratio of both: it counts the "
    "prompt's pass, too, and averages over prompts.",
    300,
)
TASKS = Panel("tasks", "Speed-up by task", "Which prompts does it suit? Dashed: vanilla decoding.")
TIME = Panel(
    "time",
    "Where is the time spent?",
    "Drafting pays off when the accepted length exceeds the relative cost of a step.",
)
TREE = Panel(
    "tree",
    "Draft tree",
    "Which draft tokens are worth verifying? The larger a circle, the more often it was accepted.",
    400,
)
PANELS = (SPEED, GAIN, TASKS, TIME, TREE)  # those with data are shown


def build() -> None:
    page = Outputs(
        run=dropdown("Benchmark", "benchmark-run", min_width=240, visible=False).render(),
        drafter=dropdown("Drafter", "benchmark-drafter"),
    )
    page["head"] = HtmlPanel(elem_id="benchmark-head", min_height=120)
    page["charts"] = gr.Column(elem_id="benchmark-charts", visible=False)
    with page["charts"], gr.Row(elem_classes="curve-wall"):
        for panel in PANELS:
            with gr.Column(min_width=320) as page[panel.name]:
                own = [[page["drafter"]]] if panel is TREE else ()
                page |= panel.build("benchmark", own)
    chosen = [page[name] for name in CONTROLS]
    show = page.named(draw)
    live(show, chosen, page.components)
    for name, control in zip(CONTROLS, chosen, strict=True):
        url_sync(control.input(show, chosen, page.components, **LATEST), **{name: control})


def draw(run: str | None, drafter: str | None, request: gr.Request) -> Updates:
    runs = [job for job in queries.jobs(kind=benchmark.NAME) if not job.damaged]
    named = run or query(request, "run")
    shown = data.benchmark(runs, named)
    if shown is None:
        hidden = gr.update(visible=False)
        other = gr.update(choices=run_choices(runs, ""), value=None, visible=bool(runs))
        missing = bool(named and runs)
        why = HTML.no_benchmark(find_job(named), named) if missing else HTML.nothing()
        return {"run": other, "drafter": hidden, "charts": hidden, "head": why}
    tree = shown.tree(drafter or query(request, "drafter"))
    controls = {
        "run": gr.update(
            choices=run_choices(runs, shown.job.run), value=shown.job.run, visible=True
        ),
        "drafter": gr.update(
            choices=[(d.label, d.name) for d in shown.trees],
            value=tree and tree.name,
            visible=len(shown.trees) > 1,
        ),
        "charts": gr.update(visible=shown.complete),
    }
    drawn = _charts(shown, tree) if shown.complete else {}
    panels = [
        panel.show(chart, shown.job.run) | {panel.name: gr.update(visible=chart.frame is not None)}
        for panel, chart in drawn.items()
    ]
    return updates(controls, {"head": head(shown)}, *panels)


def head(shown: Benchmark) -> Markup:
    job = shown.job
    return HTML.head(
        job,
        shown.verdicts,
        job.state in ACTIVE,
        progress(job),
        error_of(job),
        conditions(job),
        command_line(job.kind, job.config),
        clone_link(job),
    )


def conditions(job: Job) -> dict[str, object]:
    here, config = job.environment, job.config
    prompts = (here.get("text") or {}).get("prompts", {})
    return {
        "Model": model_name(config["model"]),
        "Processor": here["cpu"] if here.get("device") == "cpu" else here.get("device", "–"),
        "Threads": here.get("threads", "–"),
        "Precision": here.get("precision", config["precision"]),
        "Decoder": here.get("decoder", "–"),
        "Prompts": f"{prompts.get('count', '–')} of {prompts.get('corpus', '–')}, "
        f"{config['rounds']} repetitions",
        "Answers": f"up to {config['max_new_tokens']} tokens, batch size 1, greedy; "
        "prefill included",
    }


def reported(request: gr.Request) -> dict[Panel, Chart] | None:
    runs = [job for job in queries.jobs(kind=benchmark.NAME) if not job.damaged]
    shown = data.benchmark(runs, query(request, "run"))
    if shown is None or not shown.complete:
        return None
    return _charts(shown, shown.tree(query(request, "drafter")))


def _charts(shown: Benchmark, tree: DecoderReport | None) -> dict[Panel, Chart]:
    decoders, job = shown.decoders, shown.job
    drafters = shown.drafters
    prompts = decoders[0].prompts
    timed = f"Median of {job.config['rounds']} repetitions over {prompts} prompts; lines: range."
    means = f"Means over {prompts} prompts."
    tasks = len(decoders) > 1 and len(decoders[0].tasks) > 1
    return {
        SPEED: charts.speed_up(decoders, timed),
        GAIN: charts.gain(decoders, drafters, not job.config.get("nodes"), means),
        TASKS: charts.by_task(decoders, timed) if tasks else Chart(NO_TASKS),
        TIME: charts.step_time(decoders, means),
        TREE: tree_chart(tree, drafters[tree.name].hits) if tree else Chart(NO_TREE),
    }


PAGE = Page(
    "Benchmark",
    "benchmark",
    build,
    order=70,
    section="Explore",
    key="d",
    charts=page_charts(
        "benchmark",
        reported,
        {p: itemgetter(p) for p in PANELS},
        "run",
        "The benchmark has not ended, or was deleted.",
    ),
)
