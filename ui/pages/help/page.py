"""Help: what the words and figures mean, the keys, and the same from a shell or a program."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import gradio as gr

from backend.models.sources import catalogue
from backend.text import corpora
from backend.text.files import PREFIX
from jobs.metrics import METRICS, Metric
from ui.format import esc, href
from ui.frame import Page
from ui.keyboard import shortcuts
from ui.pages import pages
from ui.pages.help import glossary
from ui.widgets.html import card, copy_button, shell, stack, table
from ui.widgets.html_panel import HtmlPanel

DIRECTIONS = {"lower": "▼ lower is better", "higher": "▲ higher is better", "": ""}
API = "/slimscope/api"


def build() -> None:
    with gr.Row(elem_classes="help"):
        with gr.Column(scale=1, min_width=320):
            HtmlPanel(stack(figures_html(), glossary_html()), elem_id="help-words")
        with gr.Column(scale=1, min_width=320):
            HtmlPanel(
                stack(keys_html(), filter_html(), shell_html(), api_html(), sources_html()),
                elem_id="help-use",
            )


def figures_html() -> str:
    """HTML: every metric, from the registry."""
    return card("Figures", f'<dl class="words">{"".join(map(_figure, METRICS.values()))}</dl>')


def _figure(of: Metric) -> str:
    about = " · ".join(filter(None, (f"<code>{esc(of.name)}</code>", DIRECTIONS[of.better])))
    return (
        f"<div><dt>{esc(of.title)}</dt><dd>{esc(of.definition)}"
        f'<span class="quiet under">{about}</span></dd></div>'
    )


def glossary_html() -> str:
    """HTML: the words, by what they belong to."""
    parts = "".join(
        f"<h3>{esc(title)}</h3>{definitions(words)}" for title, words in glossary.GLOSSARY.items()
    )
    return card("Words", parts)


def definitions(words: Mapping[str, str]) -> str:
    """HTML: a list of words and what they mean."""
    pairs = "".join(f"<div><dt>{esc(word)}</dt><dd>{esc(says)}</dd></div>"
                    for word, says in words.items())  # fmt: skip
    return f'<dl class="words">{pairs}</dl>'


def keys_html() -> str:
    """HTML: the shortcuts."""
    pairs = "".join(
        f"<div><dt>{''.join(f'<kbd>{esc(key)}</kbd>' for key in keys.split())}</dt>"
        f"<dd>{esc(does)}</dd></div>"
        for keys, does, _ in shortcuts((page.key, page.name, page.path) for page in pages())
    )
    told = (
        '<p class="quiet">In a heat map the arrow keys choose a cell. Tables sort by the '
        "buttons in their heads.</p>"
    )
    return card("Keys", f'<dl class="words">{pairs}</dl>{told}')


def filter_html() -> str:
    """HTML: the language of the filter on Runs."""
    pairs = "".join(
        f'<div><dt><a href="{href("runs", q=text)}"><code>{esc(text)}</code></a></dt>'
        f"<dd>{esc(says)}</dd></div>"
        for text, says in glossary.FILTERS.items()
    )
    return card("Filtering runs", f'<dl class="words">{pairs}</dl>')


def shell_html() -> str:
    """HTML: the command line."""
    lines = "".join(
        f"<div><dd>{esc(says)}</dd><dd>{shell(command)}</dd></div>"
        for command, says in glossary.COMMANDS.items()
    )
    return card("From a shell", f'<dl class="words">{lines}</dl>')


def api_html() -> str:
    """HTML: requests of the HTTP API, and the library."""
    rows = [[f'<code class="long">{esc(request)}</code>', f'<span class="long">{esc(says)}</span>']
            for request, says in glossary.REQUESTS.items()]  # fmt: skip
    told = (
        f"<p>JSON below <code>{API}</code>. A host shows "
        "<code>Authorization: Bearer TOKEN</code> where the dashboard is shared.</p>"
        '<p><a href="slimscope/docs">All requests</a></p>'
    )
    code = f"<pre tabindex=0>{esc(glossary.PYTHON)}</pre>{copy_button(glossary.PYTHON)}"
    return card(
        "From a program", told + table(["Request", "What it does"], rows) + "<h3>Python</h3>" + code
    )


def sources_html() -> str:
    """HTML: whose the models and texts are that come with the program or that it fetches."""
    models = [e for e in catalogue.entries() if not Path(e.name).is_absolute()]
    texts = [c for c in corpora.corpora() if not c.name.startswith(PREFIX)]
    named: list[catalogue.CatalogueEntry | corpora.CorpusInfo] = [*models, *texts]
    pairs = "".join(
        f"<div><dt>{esc(one.title)}</dt><dd>Licence: {esc(one.licence)}"
        f'<span class="quiet under"><code>{esc(one.name)}</code></span></dd></div>'
        for one in named
    )
    return card("Models and texts", f'<dl class="words">{pairs}</dl>')


PAGE = Page("Help", "help", build, order=90, key="h")
