"""From a run to its sweep, to its evaluation, and to a new sweep, by hand."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import Dashboard, opened

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


def test_a_run_leads_to_its_sweep_with_means_and_a_chart(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/run?id=sds-0002")
    visitor.get_by_role("link", name="See its sweep").click()
    expect(visitor.get_by_role("heading", name="Sweep sds-0001")).to_be_visible()
    expect(visitor.locator("#sweep-chart .scatterlayer .trace").first).to_be_attached()
    rows = visitor.locator("#sweep-runs .card").first.locator("tbody tr")
    expect(rows).to_have_count(3)
    expect(rows.first).to_contain_text("magnitude")
    expect(visitor.locator("#sweep-runs")).to_contain_text("sds-0003")


def test_a_run_that_was_not_evaluated_offers_it_and_fills_the_form(
    visitor: Page, lab: Dashboard
) -> None:
    opened(visitor, f"{lab.url}/run?id=sds-0001&tab=measures")
    visitor.get_by_role("link", name="Evaluate this run").click()
    model = visitor.locator("#evaluation-field-model input")
    expect(model).to_have_value(re.compile("^sds-0001"))  # its name follows
    preview = visitor.locator("#new-preview")
    expect(preview).to_contain_text("slimscope submit evaluation --model sds-0001")
    expect(preview).to_contain_text("Memory")


def test_a_sweep_is_counted_before_it_is_queued_and_refused_beside_its_values(
    visitor: Page, lab: Dashboard
) -> None:
    opened(visitor, f"{lab.url}/new?kind=sds")
    visitor.locator("#form-sds").get_by_role("button", name="Sweep").click()
    visitor.locator("#sds-sweep-field-1 input").click()
    visitor.get_by_role("option", name="Seed", exact=True).click()
    values = visitor.locator("#sds-sweep-values-1").locator("input, textarea")
    values.fill("0..3")
    add = visitor.locator("#new-add")
    expect(add).to_have_text("Add 4 runs to queue")
    values.fill("3..0")
    expect(visitor.locator("#sds-sweep-message-1")).to_contain_text("does not count up")
    expect(add).to_have_text("Add to queue")


def test_what_is_wrong_is_said_at_once_and_forgotten_when_it_is_mended(
    visitor: Page, lab: Dashboard
) -> None:
    opened(visitor, f"{lab.url}/new?kind=dlqat&model=Toy")
    bits = visitor.locator("#dlqat-field-bits input")
    bits.fill("99")
    visitor.locator("#dlqat-field-group-size input").fill("7")
    messages = [visitor.locator(f"#dlqat-message-{name}") for name in ("bits", "group-size")]
    expect(messages[0]).to_contain_text("It must be 8 or less.")
    expect(messages[1]).to_contain_text("does not fit this model")
    visitor.locator("#new-add").click()
    expect(visitor.locator("#new-said")).to_contain_text("was not accepted")
    bits.fill("4")
    expect(visitor.locator("#new-said")).to_have_count(0)
    expect(messages[0]).to_have_count(0)
    expect(messages[1]).to_be_visible()


def test_the_list_of_a_dropdown_opens_below_it_where_it_fits(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/new?kind=sds")
    field = visitor.locator("#sds-field-base")
    field.locator("input").click()
    expect(field.get_by_role("option", name="wanda")).to_be_visible()
    below = "box => box.querySelector('.options').getBoundingClientRect().top"
    visitor.wait_for_function(
        "() => { const box = document.querySelector('#sds-field-base .options');"
        " return box && box.style.bottom === 'auto'; }"
    )
    assert field.evaluate(below) > field.locator("input").bounding_box()["y"]  # type: ignore[index]
