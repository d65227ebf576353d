import pytest


@pytest.mark.falsify_parser_001
def test_two_names():
    assert "a,b".split(",") == ["a", "b"]
