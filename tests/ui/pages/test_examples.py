"""The runs that come with the package have figures and texts, and no weights: what is shown of them
leads nowhere that needs some."""

import re
import shutil
from typing import Any

import gradio as gr
import pytest

from backend.backup.examples import bundled, install_examples
from backend.errors import ConfigError
from backend.queue.actor import Actor
from backend.queue.folders import run_folder
from backend.store import queries
from jobs.generate.config import GenerateJob
from jobs.imported import check_row
from jobs.submit import submit
from tests.ui.conftest import Fill
from tests.ui.lab import asked, job, model_folder, store
from ui.pages.playground import page as playground
from ui.pages.run import page as run_page
from ui.pages.run import quality
from ui.runs import choices
from ui.runs.actions.action import carry_out, offered
from ui.runs.actions.single import next_links
from ui.runs.job_log import part
from ui.widgets.config_form import ConfigForm

HOST = Actor("mira", "host")
WEIGHTLESS = ("sds-example", "dlqat-example", "amphista-example")


@pytest.fixture(autouse=True)
def shipped(filled: Fill) -> None:
    filled(install)


def install() -> None:
    install_examples(check_row)


def test_no_list_of_models_offers_one() -> None:
    store(job(1), model_folder(1, 100))
    shutil.rmtree(run_folder("sds-0001"))  # as if imported without its weights
    offered = [*choices.CHOICES["saved"](), *choices.CHOICES["drafters"](), *choices.answering()]
    names = {name for _, name in offered}
    assert "toy" in names and not names & {*bundled(), "sds-0001"}


@pytest.mark.parametrize("run", WEIGHTLESS)
def test_whoever_asks_one_reads_why_it_cannot_answer(run: str) -> None:
    with pytest.raises(ConfigError, match=f"The weights of {run} are not here") as refused:
        submit("generate", {"sides": run}, HOST)
    assert refused.value.why == "Examples ship without weights."


def arrived(**address: str) -> dict[str, Any]:
    """Value of the models, and what is said above the prompt."""
    with gr.Blocks():
        form = ConfigForm(GenerateJob, {}, "test-", without=playground.ELSEWHERE)
        sides, blind, message = gr.Dropdown(multiselect=True), gr.Checkbox(), gr.HTML()
    arrive = playground._arrive(form, sides, blind, message)
    updates = arrive(asked(**address))
    said = updates.get(message, {})
    return {"sides": updates[sides].get("value"), "said": said.get("value", "")}


def test_its_conversation_goes_on_as_a_new_one_with_the_model_that_is_there() -> None:
    there = arrived(run="generate-example")
    assert there["sides"] == ["smollm2-135m"]
    text = re.sub("<[^>]*>", "", there["said"])
    assert all(run in text for run in WEIGHTLESS[:2])
    assert text.startswith("Examples ship without weights. ")
    assert "your prompt begins a new chat with smollm2-135m." in text
    assert 'href="playground?sides=smollm2-135m"' in there["said"]
    assert arrived(sides="amphista-example")["sides"] == ["smollm2-135m"]
    assert arrived(sides="toy") == {"sides": ["toy"], "said": ""}


@pytest.mark.parametrize("run", WEIGHTLESS)
def test_its_page_offers_what_works(run: str) -> None:
    example = queries.job(run)
    assert offered([example], HOST, "order") == []
    links = next_links(example)
    assert "Measure its speed" not in links and "Generate with it" not in links
    said = "Examples ship without weights."
    assert said in run_page.draw(asked(id=run))["artefacts"]
    log = part(example, None)
    assert log and said in log["title"]
    quality_said = quality.update(example)["findings"]
    assert said in quality_said or run == "amphista-example"  # no drafter has a quality


def test_among_own_runs_only_those_are_deleted() -> None:
    store(job(1))
    both = [queries.job("sds-0001"), queries.job("sds-example")]
    (delete,) = (each for each in offered(both, HOST, "order") if each.name == "delete")
    assert delete.question.startswith("Delete sds-0001?")
    carry_out("delete", both, "", HOST)
    assert [bool(queries.job(each.run).removed_at) for each in both] == [True, False]
