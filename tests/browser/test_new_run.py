"""New run by hand: one form for runs, sweeps and pipelines, and what it says while it is filled."""

import re

from playwright.sync_api import Page, Route, expect

from backend.queue import scheduling, service
from backend.store import queries
from tests.browser.conftest import HOST, Dashboard, opened
from tests.waiting import until


def test_a_form_answers_at_once_for_every_method(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/new-run?kind=dlqat&model=toy&bogus=1")
    expect(visitor.locator("#new-said")).to_contain_text("bogus")
    the_command_names_all_that_a_preset_sets(visitor)
    what_is_wrong_is_said_at_once_and_forgotten_when_it_is_mended(visitor)
    a_model_that_is_not_in_the_list_is_typed(visitor)
    what_is_typed_while_the_server_is_slow_is_kept(visitor)
    visitor.get_by_label("Method").select_option("sds")
    runs_are_added_once_and_the_button_says_so_at_once(visitor)
    a_message_stays_until_something_is_changed(visitor)
    several_values_are_counted_and_refused_beside_their_field(visitor)
    steps_are_added_by_keyboard_and_kept_in_the_address(visitor)


def the_command_names_all_that_a_preset_sets(page: Page) -> None:
    for preset, last in (("quick look", "--batch 2"), ("thorough", "--steps 200")):
        page.get_by_role("radio", name=preset).check(force=True)
        expect(page.locator("#new-plan")).to_contain_text(last)
    expect(page.locator("#new-plan")).not_to_contain_text("--batch")


def what_is_wrong_is_said_at_once_and_forgotten_when_it_is_mended(page: Page) -> None:
    bits, plan = page.get_by_label("Bits", exact=True), page.locator("#new-plan")
    bits.fill("99")
    page.locator("#field-group_size").fill("7")
    messages = [page.locator(f"#message-{name}") for name in ("bits", "group_size")]
    expect(messages[0]).to_contain_text("It must be 8 or less.")
    expect(messages[1]).to_contain_text("does not fit this model")
    expect(plan).to_contain_text("These settings would be refused. Bits was not accepted.")
    expect(plan.get_by_role("button", name="Copy")).to_be_disabled()
    page.get_by_role("button", name="Add to queue").click()
    expect(page.locator("#new-said")).to_contain_text("was not accepted")
    bits.fill("4")
    expect(page.locator("#new-said")).to_be_empty()
    expect(messages[0]).to_be_empty()
    expect(messages[1]).not_to_be_empty()


def a_model_that_is_not_in_the_list_is_typed(page: Page) -> None:
    model = page.get_by_label("Model", exact=True)
    model.select_option("Other …")
    expect(model).to_be_focused()
    model.fill("nothing")
    expect(page.locator("#message-model")).not_to_be_empty()
    model.fill("toy")
    expect(page.locator("#message-model")).to_be_empty()


def several_values_are_counted_and_refused_beside_their_field(page: Page) -> None:
    page.get_by_text("All settings").click()
    page.get_by_role("button", name="Seed: several values").click()
    values = page.locator("#field-seed")
    values.fill("0..3")
    add = page.locator("#new-add")
    expect(add).to_have_text("Add 4 runs to queue")
    values.fill("3..0")
    expect(page.locator("#message-seed")).to_contain_text("does not count up")
    expect(add).to_have_text("Add to queue")
    values.fill("0, 1")
    expect(add).to_have_text("Add 2 runs to queue")


def steps_are_added_by_keyboard_and_kept_in_the_address(page: Page) -> None:
    page.get_by_role("button", name="Add a step").press("Enter")
    page.locator("#new-more").get_by_role("button", name="DL-QAT quantization").press("Enter")
    expect(page.locator("#new-steps [aria-current]")).to_contain_text("2 DL-QAT")
    expect(page.locator("#new-add")).to_have_text("Add 4 runs to queue")
    page.wait_for_function("location.search.split('step=').length === 3")
    page.reload()
    expect(page.locator("#new-add")).to_have_text("Add 4 runs to queue")
    expect(page.locator("#new-plan svg")).to_have_count(2)


def what_is_typed_while_the_server_is_slow_is_kept(page: Page) -> None:
    waiting: list[Route] = []
    page.route(
        "**/slimscope/new-run",
        lambda route: route.continue_() if waiting else waiting.append(route),
    )
    page.locator("#new-recipes input[value='GPTQ']").check()
    page.get_by_label("Bits", exact=True).fill("5")
    until(lambda: page.wait_for_timeout(20) or waiting)
    waiting[0].continue_()
    expect(page.locator("#new-plan")).to_contain_text("--bits 5")
    expect(page.get_by_label("Bits", exact=True)).to_have_value("5")


def runs_are_added_once_and_the_button_says_so_at_once(page: Page) -> None:
    """A second click waits for nothing: the button rests until the server has answered."""
    page.get_by_label("Pattern", exact=True).fill("1:4")
    expect(page.locator("#new-plan")).to_contain_text("--pattern 1:4")
    button, said = page.locator("#new-add button"), page.locator("#new-said")
    waiting: list[Route] = []
    page.route("**/slimscope/new-run", lambda route: waiting.append(route))
    before = len(queries.jobs())
    button.dblclick()
    expect(button).to_be_disabled()
    expect(button).to_have_attribute("aria-busy", "true")
    expect(said).to_have_attribute("aria-live", "polite")
    expect(said).to_contain_text("Adding to the queue")
    until(lambda: page.wait_for_timeout(20) or waiting)
    waiting[0].continue_()
    page.unroute("**/slimscope/new-run")
    expect(said).to_contain_text("The run was added")
    expect(button).to_be_enabled()
    (job,) = queries.jobs()[: len(queries.jobs()) - before]
    assert len(waiting) == 1 and job.config["pattern"] == "1:4"
    if scheduling.queued():
        service.cancel([job.run], HOST)


def a_message_stays_until_something_is_changed(page: Page) -> None:
    page.get_by_label("Pattern", exact=True).fill("4:8")
    page.get_by_role("button", name="Add to queue").click()  # while that is still sent
    said = page.locator("#new-said")
    expect(said.get_by_role("link", name="Open sds-")).to_be_visible()
    expect(page.locator("#new-plan")).to_contain_text(re.compile("Already run|In the queue"))
    expect(said).to_contain_text("The run was added")
    page.get_by_label("Pattern", exact=True).fill("2:4")
    expect(said).to_be_empty()
    job = queries.jobs()[0]
    assert job.config["pattern"] == "4:8"
    if scheduling.queued():
        service.cancel([job.run], HOST)
