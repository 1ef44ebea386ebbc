"""docs/reliability.md promises what the tests cause."""

from tests.promises import PAGE, page


def test_the_table_of_faults_is_up_to_date():
    assert PAGE.read_text() == page(), "make it again: python -m tests.promises"
