"""Conversion of MediaWiki markup to prose."""

import io

import pytest

from backend.text.wikipedia import MIN_ARTICLE, articles, prose

REST = " This sentence only makes the paragraph long enough to be counted as a paragraph of prose."


@pytest.mark.parametrize(
    ("markup", "plain"),
    [
        ("'''Albedo''' is ''whiteness''.", "Albedo is whiteness."),
        ("A [[dog]] and [[cat (animal)|cats]].", "A dog and cats."),
        ("See [http://example.org the page] now.", "See the page now."),
        ("Known<ref name=a>Smith {{p.|3}}</ref> facts<ref name=a/>.", "Known facts."),
        ("It is {{convert|5|km|mi}} away.", "It is 5 km away."),
        ("From {{convert|2|to|3|in|cm}} long.", "From 2 to 3 in long."),
        ("Greek {{lang|grc|ἀναρχία}} means none.", "Greek ἀναρχία means none."),
        ("Old ({{IPAc-en|a}}; {{lang-la|vetus}}) words.", "Old (vetus) words."),
        ("Empty ({{IPAc-en|a}}) brackets.", "Empty brackets."),
        ("A {{outer|{{inner|x}}}}b c.", "A b c."),
        ("One<!-- hidden --> line<br/>break &mdash; sign.", "One line break — sign."),
        ("[[File:A.jpg|thumb|A [[nested]] caption]]It stays.", "It stays."),
    ],
)
def test_markup_is_removed_from_prose(markup: str, plain: str) -> None:
    assert prose(markup + REST) == plain + REST


@pytest.mark.parametrize(
    "markup",
    [
        "== A heading ==",
        "* a list item." + REST,
        "{| class=x\n| a cell." + REST + "\n{|\n| nested\n|}\n|}",
        "The sum <math>a + b</math> is missing here." + REST,
        "A letter written {{angbr|a}} is missing here." + REST,
        "A short line.",
        "and the rest of a broken sentence." + REST,
        "No end of a sentence in this line" + REST[:-1],
        "== See also ==\nNothing after it is prose." + REST,
    ],
)
def test_other_content_is_dropped_completely(markup: str) -> None:
    assert prose(markup) == ""


def page(title: str, text: str, ns: int = 0, extra: str = "") -> str:
    return (
        f"<page><title>{title}</title><ns>{ns}</ns>{extra}"
        f"<revision><id>7</id><text>{text}</text></revision></page>"
    )


def test_only_long_articles_are_kept() -> None:
    long = ("Word." + REST + "\n") * (MIN_ARTICLE // len(REST) + 1)
    dump = (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/">'
        + page("Kept", long)
        + page("Short", "Word." + REST)
        + page("Talk", long, ns=1)
        + page("Moved", long, extra='<redirect title="Kept"/>')
        + "</mediawiki>"
    )
    found = list(articles(io.BytesIO(dump.encode())))
    assert [(a.title, a.revision) for a in found] == [("Kept", "7")]
    assert found[0].text.count("\n\n") == long.count("\n") - 1
