"""All HTML of the pages: Jinja templates, escaped by the environment, not by their authors.

    html = fragments("pages/benchmark/page.html")
    html.verdict(job, sentences)          # a macro of that file, as `Markup`
    page = render("templates/api.html", path=path)

Values are escaped by autoescape. Gradio expands `${...}` and `{{...}}` in the HTML it shows, so the
characters that start either are written as entities in everything that leaves this module.
A Python value that is HTML already is a `Markup`; only `fragments` and `href` make one.
A template lies beside the page that uses it; what several pages use lies in this folder.
"""

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from jinja2.ext import Extension
from markupsafe import Markup

from backend.queue.permissions import ASK
from ui import format as formats
from ui.theme import DARK, LIGHT, ink, variables_of


def neutral(html: str) -> Markup:
    """The same HTML without a character that Gradio would expand. Applying it twice is harmless."""
    return Markup(html.translate(formats.ACTIVE_IN_GRADIO))


class Fragments:
    """The macros of a template, by its path below `ui/`, callable by their names."""

    def __init__(self, template: str) -> None:
        self._template = template

    def __getattr__(self, macro: str) -> Callable[..., Markup]:
        def call(*args: Any, **values: Any) -> Markup:
            return neutral(getattr(_load(self._template).module, macro)(*args, **values))

        return call


fragments = Fragments


def render(template: str, **values: Any) -> str:
    """A whole page of a route outside Gradio, which expands nothing in it."""
    return _load(template).render(**values)


@lru_cache
def _load(template: str) -> Template:
    return environment().get_template(template)


@lru_cache
def environment() -> Environment:
    """The one environment: autoescape, no undefined names, the formatters of `ui.format`."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[JoinedLines],
    )
    made.filters |= {**formats.FILTERS, "ink": ink}
    made.globals |= {"href": formats.href, "NONE": formats.NONE, "ASK": ASK}
    made.globals |= {"LIGHT": variables_of(LIGHT), "DARK": variables_of(DARK)}
    return made


class JoinedLines(Extension):
    """Templates are indented for people: a line break beside a tag is nothing, elsewhere a space.
    Where a space belongs beside a tag it stands on the same line as both."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        return re.sub(r"(%}|#}|>)?[ \t]*\n\s*(?=({%|{#|<)?)", _joint, source.strip())


def _joint(line_break: re.Match[str]) -> str:
    before, after = line_break.groups()
    return (before or "") + ("" if before or after else " ")
