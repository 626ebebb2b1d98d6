"""All tests named on the security page exist."""

import pytest

from tests.named_tests import existing_tests, named_tests, rows_of

SECTIONS = ("Attacks",)


@pytest.mark.parametrize("section", SECTIONS)
def test_every_attack_names_a_test_there_is(section: str) -> None:
    rows, existing = rows_of("security.md", f"## {section}"), existing_tests()
    assert rows
    assert [row for row in rows if not named_tests(row)] == []
    assert {name for row in rows for name in named_tests(row)} - existing == set()
