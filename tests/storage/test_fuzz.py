"""A short share of tests.fuzz.storage."""

from tests.fuzz import storage


def test_only_declared_errors_escape():
    counts = storage.run(4, 12)
    assert all(count >= 50 for count in counts.values())
