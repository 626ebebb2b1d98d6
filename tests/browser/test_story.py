"""A story: made from a page, edited, presented, followed on a phone, and opened without network."""

from pathlib import Path

from playwright.sync_api import Browser, BrowserContext, Page, expect

from tests.browser.conftest import Dashboard, code_to_follow, opened, warm_tab

CUT = """() => [...document.querySelectorAll('.shown .main-svg, .shown table, .shown p, .shown h2')]
  .filter((one) => one.getBoundingClientRect().bottom > document.querySelector('nav').offsetTop + 1
    || one.getBoundingClientRect().right > innerWidth + 1).length"""
STAGE = "#weights-rail [aria-checked='true']"


def test_a_view_is_added_edited_and_presented_to_a_phone(
    other_context: BrowserContext, visitor: Page, lab: Dashboard
) -> None:
    opened(visitor, f"{lab.url}/compare?ids=sds-0001,sds-0002")
    visitor.get_by_role("button", name="Share", exact=True).click()
    share = visitor.locator("dialog.share")
    share.locator("[name=chart]").select_option("compare-stages")
    share.locator("[name=story]").select_option(label="A new story")
    share.get_by_label("Caption").fill("Which one ends lower?")
    share.get_by_role("button", name="Add", exact=True).click()
    expect(share.locator("[name=story] option")).to_have_count(3)
    share.get_by_role("link", name="Open the story").click()
    visitor.wait_for_url("**/story?n=2")
    expect(visitor.locator(".story-views li")).to_have_count(1)
    opened(visitor, f"{lab.url}/story?n=1")
    rows = visitor.locator(".story-views li")
    expect(rows).to_have_count(4)
    first = rows.first.get_attribute("data-run")
    rows.first.locator(".handle").press("ArrowDown")
    expect(rows.nth(1)).to_have_attribute("data-run", first or "")
    expect(rows.nth(1).locator(".handle")).to_be_focused()
    rows.nth(1).locator(".handle").drag_to(rows.first, target_position={"x": 4, "y": 2})
    expect(rows.first).to_have_attribute("data-run", first or "")
    visitor.get_by_test_id("story-present").click()
    visitor.wait_for_url("**/slimscope/story?n=1&at=0")
    expect(visitor.locator(".shown .main-svg").first).to_be_visible()
    for _ in range(3):
        assert visitor.evaluate(CUT) == 0
        visitor.keyboard.press("PageDown")
    expect(visitor.frame_locator(".shown iframe").locator(STAGE)).to_have_accessible_name("Dense")
    code = code_to_follow(visitor)
    with warm_tab(other_context, lab.url) as phone:
        phone.set_viewport_size({"width": 390, "height": 844})
        phone.goto(f"{lab.url}/slimscope/follow?code={code}")
        expect(phone.locator("output")).to_have_text("4 of 4")
        visitor.keyboard.press("Home")
        expect(phone.locator("output")).to_have_text("1 of 4")
        assert phone.evaluate(CUT) == 0
    assert visitor.url.endswith("?n=1&at=0"), "a reload shows the same view"
    visitor.keyboard.press("Escape")
    visitor.wait_for_url(f"{lab.url}/story?n=1")
    visitor.get_by_role("button", name="Remove view 2").click()
    expect(visitor.locator(".story-views li")).to_have_count(3)
    visitor.get_by_test_id("undo").click()
    expect(visitor.locator(".story-views li")).to_have_count(4)


def test_an_exported_story_is_presented_without_network(
    browser: Browser, visitor: Page, lab: Dashboard, tmp_path: Path
) -> None:
    opened(visitor, f"{lab.url}/story?n=1")
    with visitor.expect_download() as download:
        visitor.get_by_test_id("story-export").click()
    file = tmp_path / "story.html"
    download.value.save_as(file)
    context = browser.new_context(offline=True)
    asked: list[str] = []
    page = context.new_page()
    page.on("request", lambda request: asked.append(request.url))
    page.goto(file.as_uri())
    expect(page.locator("section .main-svg").first).to_be_visible()
    page.get_by_role("button", name="Present").click()
    page.keyboard.press("End")
    expect(page.locator("output")).to_have_text("4 of 4")
    assert page.evaluate(CUT) == 0
    assert {url.partition(":")[0] for url in asked} <= {"file", "data", "blob"}
    context.close()
    opened(visitor, f"{lab.url}/story")
    visitor.locator(".story-import input").set_input_files(file)
    visitor.wait_for_url("**/story?n=*")
    expect(visitor.locator(".story-views li")).to_have_count(4)
