"""From a run to its sweep and to its evaluation, and the form of a new run, by hand."""

from playwright.sync_api import Page, expect

from tests.browser.conftest import PHONE, SCREEN, Dashboard, opened

TITLE_LINES = r"""[...document.querySelectorAll("#recipe-amphista label span")].map(span => {
  const title = document.createRange(), text = span.firstChild;
  title.setStart(text, 0);
  title.setEnd(text, (text.data + "\n").indexOf("\n"));
  return title.getClientRects().length })"""
IS_BELOW = """() => {
  const field = document.querySelector('#sds-field-base'), list = field.querySelector('.options');
  return list && list.style.bottom === 'auto' &&
    list.getBoundingClientRect().top > field.querySelector('input').getBoundingClientRect().top }"""


def test_a_form_answers_at_once_for_every_method(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/new-run?kind=dlqat&model=Toy")
    the_command_names_all_that_a_preset_sets(visitor)
    what_is_wrong_is_said_at_once_and_forgotten_when_it_is_mended(visitor)
    choose_method(visitor, "sds")
    the_list_of_a_dropdown_opens_below_it_where_it_fits(visitor)
    a_sweep_is_counted_before_it_is_queued_and_refused_beside_its_values(visitor)
    choose_method(visitor, "amphista")
    the_whole_title_of_a_recipe_is_bold(visitor)


def choose_method(page: Page, kind: str) -> None:
    page.locator(f"#new-kind input[value='{kind}']").check()
    expect(page.locator(f"#form-{kind}")).to_be_visible()
    # whose prices move what is below them
    expect(page.locator("#new-preview")).to_contain_text(f"slimscope submit {kind}")


def the_command_names_all_that_a_preset_sets(page: Page) -> None:
    for preset, last in (("quick look", "--batch 2"), ("thorough", "--steps 200")):
        page.locator("#preset-dlqat label", has_text=preset).click()
        expect(page.locator("#new-preview")).to_contain_text(last)
    expect(page.locator("#new-preview")).not_to_contain_text("--batch")


def what_is_wrong_is_said_at_once_and_forgotten_when_it_is_mended(page: Page) -> None:
    bits = page.locator("#dlqat-field-bits input")
    bits.fill("99")
    page.locator("#dlqat-field-group-size input").fill("7")
    messages = [page.locator(f"#dlqat-message-{name}") for name in ("bits", "group-size")]
    expect(messages[0]).to_contain_text("It must be 8 or less.")
    expect(messages[1]).to_contain_text("does not fit this model")
    preview = page.locator("#new-preview")
    expect(preview).to_contain_text("These settings would be refused. Bits was not accepted.")
    expect(preview.get_by_role("button", name="Copy")).to_be_disabled()
    page.locator("#new-add").click()
    expect(page.locator("#new-said")).to_contain_text("was not accepted")
    bits.fill("4")
    expect(page.locator("#new-said")).to_have_count(0)
    expect(messages[0]).to_have_count(0)
    expect(messages[1]).to_be_visible()


def the_list_of_a_dropdown_opens_below_it_where_it_fits(page: Page) -> None:
    field = page.locator("#sds-field-base")
    field.evaluate("e => e.scrollIntoView({block: 'center'})")  # where there is room below it
    field.locator("input").click()
    expect(field.get_by_role("option", name="wanda")).to_be_visible()
    page.wait_for_function(IS_BELOW)
    page.keyboard.press("Escape")


def a_sweep_is_counted_before_it_is_queued_and_refused_beside_its_values(page: Page) -> None:
    page.locator("#form-sds").get_by_role("button", name="Sweep").click()
    page.locator("#sds-sweep-field-1 input").click()
    page.get_by_role("option", name="Seed", exact=True).click()
    values = page.locator("#sds-sweep-values-1").locator("input, textarea")
    values.fill("0..3")
    add = page.locator("#new-add")
    expect(add).to_have_text("Add 4 runs to queue")
    values.fill("3..0")
    expect(page.locator("#sds-sweep-message-1")).to_contain_text("does not count up")
    expect(add).to_have_text("Add to queue")


def the_whole_title_of_a_recipe_is_bold(page: Page) -> None:
    card = page.locator("#recipe-amphista label span", has_text="Medusa")
    for size in (SCREEN["viewport"], PHONE):
        page.set_viewport_size(size)
        card.wait_for()
        assert {*page.evaluate(TITLE_LINES)} == {1}, size  # the first line is bold
