"""The help drawer says what is true, and links lead to its terms."""

import pytest

from backend.settings import Settings
from tests.ui.lab import job, measured
from tests.ui.visits import Visit
from ui import help
from ui.format import esc
from ui.pages import pages
from ui.runs.columns import columns
from ui.runs.rows import rows
from ui.runs.view import parse_filter


def test_every_model_and_text_is_named_with_its_license(visit: Visit) -> None:
    html = visit().get("/slimscope/help").text
    for name, license in (
        ("toy", "same as Slimscope"),
        ("smollm2-135m", "Apache-2.0"),
        ("wikipedia", "CC BY-SA 3.0 / GFDL"),
        ("c4", "ODC-By 1.0"),
    ):
        assert f"<code>{name}</code>" in html and esc(license) in html
    assert "<code>/" not in html and "file:" not in html


@pytest.mark.parametrize("text", help.FILTERS)
def test_every_filter_is_understood(text: str) -> None:
    known = columns(rows([job(1)], measured(1, 12.0)))
    found = parse_filter(text, known)
    assert found.terms and not found.problems


def test_every_question_leads_to_a_page(tables: Settings) -> None:
    paths = {page.path or "home" for page in pages()}
    assert {page for _, page in help.QUESTIONS.values()} <= paths


def test_a_known_term_is_a_link_and_another_has_a_tooltip() -> None:
    assert 'href="#term-sparsity"' in help.explained("Sparsity")
    assert "<a" not in help.explained("<b>", "odd") and "<b>" not in help.explained("<b>", "odd")
