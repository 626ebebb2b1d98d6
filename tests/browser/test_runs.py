"""Finding, sorting, comparing and saving runs, by mouse and by keyboard alone."""

from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Browser, Page, expect

from backend.store import queries
from backend.store.states import State
from tests.browser.conftest import SMALL, Dashboard, opened


def query(page: Page) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(page.url).query).items()}


def perplexities() -> dict[str, float]:
    """Run -> perplexity of the stage it kept, from the database."""
    found = {}
    for job in queries.jobs([State.SUCCEEDED], "sds"):
        if job.config.get("segments") != SMALL["segments"]:
            continue  # added meanwhile by the tests of New run
        rows = queries.results([job.id])
        found[job.run] = next(
            r.value for r in rows if (r.stage, str(r.metric)) == (job.kept_stage, "perplexity")
        )
    return found


def listed(page: Page) -> list[str]:
    """The runs of the table, from top to bottom."""
    rows = page.locator("#runs-board tbody tr")
    named = rows.evaluate_all("(rows) => rows.map((row) => row.dataset.testid)")
    return [str(name).removeprefix("row-") for name in named]


def test_sorting_by_keyboard_keeps_focus_and_address(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/runs?q=kind:sds%20segments%3D8&group=none")
    best_first = sorted(perplexities(), key=lambda run: perplexities()[run])
    head = visitor.get_by_test_id("sort-perplexity")
    head.focus()
    for order, wanted in (("descending", best_first[::-1]), ("ascending", best_first)):
        visitor.keyboard.press("Enter")
        expect(visitor.locator(f'th[aria-sort="{order}"]')).to_contain_text("Perplexity")
        assert listed(visitor) == wanted
        assert head.evaluate("(e) => e === document.activeElement")
    assert query(visitor) == {
        "q": "kind:sds segments=8",
        "group": "none",
        "sort": "perplexity",
        "dir": "asc",
    }
    visitor.go_back()  # which undoes the last view
    expect(visitor.locator('th[aria-sort="descending"]')).to_contain_text("Age")
    visitor.go_forward()
    expect(visitor.locator('th[aria-sort="ascending"]')).to_contain_text("Perplexity")
    visitor.get_by_role("link", name="Home", exact=True).click()
    visitor.wait_for_url(f"{lab.url}/")
    visitor.go_back()
    expect(visitor.locator('th[aria-sort="ascending"]')).to_contain_text("Perplexity")
    expect(visitor.locator("#runs-filter input, #runs-filter textarea")).to_have_value(
        "kind:sds segments=8"
    )
    assert listed(visitor) == best_first


def test_a_filter_is_written_as_typed_and_is_cleared(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/runs")
    field = visitor.locator("#runs-filter input, #runs-filter textarea")
    field.fill("state:failed")
    expect(visitor.locator("#runs-board .bulk")).to_contain_text(f"1 of {len(queries.jobs())} runs")
    assert listed(visitor) == ["count-0004"] and query(visitor)["q"] == "state:failed"
    field.fill("perplexty>1")
    expect(visitor.locator("#runs-board .warn")).to_contain_text("Did you mean perplexity?")
    field.fill("no such run")
    visitor.get_by_test_id("clear-filter").click()
    expect(visitor.locator("#runs-board .bulk")).to_contain_text(
        f"{len(queries.jobs())} of {len(queries.jobs())} runs"
    )
    expect(field).to_have_value("")


def test_from_the_table_to_a_comparison_with_the_right_signs(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, f"{lab.url}/runs")
    visitor.get_by_role("button", name="Sweep of 3 runs").click()  # it was folded
    visitor.get_by_role("checkbox", name="Select sds-0001").click()
    visitor.get_by_role("button", name="Set as baseline").click()
    expect(visitor.get_by_test_id("row-sds-0001")).to_contain_text("Baseline")
    for run in ("sds-0002", "sds-0003"):
        visitor.get_by_role("checkbox", name=f"Select {run}").click()
    expect(visitor.locator("#runs-board .bulk")).to_contain_text("2 selected")
    visitor.get_by_role("button", name="Pin", exact=True).click()
    expect(visitor.locator("tbody.pinned tr")).to_have_count(3)
    found = perplexities()
    for run in ("sds-0002", "sds-0003"):
        delta = (
            visitor.get_by_test_id(f"row-{run}")
            .locator("td", has_text="▲")
            .or_(visitor.get_by_test_id(f"row-{run}").locator("td", has_text="▼"))
        )
        sign = "▲+" if found[run] > found["sds-0001"] else "▼−"
        expect(delta.first).to_contain_text(sign)
        visitor.get_by_role("checkbox", name=f"Select {run}").click()
    expect(visitor.get_by_test_id("compare")).to_have_text("Compare 3")
    visitor.get_by_test_id("compare").click()
    visitor.wait_for_url("**/compare?*")
    config = visitor.locator("#compare-config")
    expect(config.locator("tbody tr")).to_have_count(1)  # one setting differs
    expect(config.locator("tbody tr")).to_contain_text("sparsegpt")
    expect(config).to_contain_text("settings are the same")
    figures = visitor.locator("#compare-figures table")
    html = figures.inner_html()
    link = visitor.url
    visitor.goto("about:blank")
    opened(visitor, link)
    expect(figures).to_be_visible()
    assert figures.inner_html() == html


def test_a_saved_chart_opens_without_the_dashboard(
    visitor: Page, lab: Dashboard, browser: Browser, tmp_path: Path
) -> None:
    opened(visitor, f"{lab.url}/compare?ids=sds-0001,sds-0002")
    card = visitor.locator(".card", has=visitor.locator("#compare-stages"))
    card.locator(".xtick").first.wait_for()
    with visitor.expect_download() as download:
        card.get_by_text("Save", exact=True).click()
        card.get_by_role("button", name="HTML").click()
    file = tmp_path / "chart.html"
    download.value.save_as(file)
    context = browser.new_context(offline=True)
    alone = context.new_page()
    alone.goto(file.as_uri())
    alone.locator(".plotly .xtick, .main-svg .xtick").first.wait_for()
    expect(alone.locator("p").first).to_contain_text("Which run keeps the model's perplexity best")
    assert alone.evaluate("document.body.dataset.x") is None
    context.close()


# by keyboard --------------------------------------------------------------------------------------


def test_keys_jump_search_and_list_themselves(visitor: Page, lab: Dashboard) -> None:
    opened(visitor, lab.url)
    visitor.keyboard.press("?")
    drawer = visitor.get_by_role("dialog", name="Help")
    expect(drawer).to_contain_text("Go to Runs")
    visitor.keyboard.type("fisher information")  # the field has the focus
    expect(drawer.locator("dt:visible")).to_have_text(["Fisher information"])
    visitor.keyboard.press("Escape")
    expect(drawer).to_be_hidden()
    visitor.keyboard.press("g")
    visitor.keyboard.press("r")
    visitor.wait_for_url(f"{lab.url}/runs")
    expect(visitor.locator("#runs-board table")).to_be_visible()
    visitor.keyboard.press("/")
    visitor.keyboard.type("0002")
    expect(visitor.get_by_role("option").first).to_contain_text("sds-0002")
    visitor.keyboard.type(" gr?n/")  # while a person types, keys are letters
    expect(visitor.locator("#frame-search")).to_have_value("0002 gr?n/")
    for _ in " gr?n/":
        visitor.keyboard.press("Backspace")
    expect(visitor.get_by_role("option").first).to_contain_text("sds-0002")
    visitor.keyboard.press("Enter")
    visitor.wait_for_url(f"{lab.url}/run?id=sds-0002")
    expect(visitor.locator("h1")).to_have_text("sds-0002")
