"""Jinja templates, the source of all HTML of the pages.

    html = fragments("pages/run/page.html")
    html.verdict(job, sentences)          # a macro of that file, as `Markup`
    page = render("templates/api.html", path=path)

Jinja's autoescape escapes all values. Gradio expands `${...}` and `{{...}}` in HTML, so this module
writes the characters that start either as entities. A Python value that is already HTML is a
`Markup`; only `fragments` and `href` create one. A template lies next to the page that uses it;
this folder holds the templates of several pages.
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
    """The same HTML without characters that Gradio would expand; safe to apply twice."""
    return Markup(html.translate(formats.ACTIVE_IN_GRADIO))


class Fragments:
    """The macros of a template as methods; the template is named by its path below `ui/`."""

    def __init__(self, template: str) -> None:
        self._template = template

    def __getattr__(self, macro: str) -> Callable[..., Markup]:
        def call(*args: Any, **values: Any) -> Markup:
            return neutral(getattr(_load(self._template).module, macro)(*args, **values))

        return call


fragments = Fragments


def render(template: str, **values: Any) -> str:
    """A complete page for a route outside Gradio, so that nothing has to be neutralized."""
    return _load(template).render(**values)


@lru_cache
def _load(template: str) -> Template:
    return environment().get_template(template)


@lru_cache
def environment() -> Environment:
    """The Jinja environment: autoescape, strict undefined names, the formatters of `ui.format`."""
    created = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[JoinedLines],
    )
    created.filters |= {**formats.FILTERS, "ink": ink}
    created.globals |= {"href": formats.href, "NONE": formats.NONE, "ASK": ASK}
    created.globals |= {"LIGHT": variables_of(LIGHT), "DARK": variables_of(DARK)}
    return created


class JoinedLines(Extension):
    """Extension that removes the indentation of templates.

    A line break next to a tag is removed, any other becomes a space. A space that belongs next to a
    tag has to be on the same line as the tag."""

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """The source of a template with its lines joined."""
        return re.sub(r"(%}|#}|>)?[ \t]*\n\s*(?=({%|{#|<)?)", _joint, source.strip())


def _joint(line_break: re.Match[str]) -> str:
    before, after = line_break.groups()
    return (before or "") + ("" if before or after else " ")
