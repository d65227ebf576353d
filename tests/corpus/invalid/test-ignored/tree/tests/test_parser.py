import pytest


def test_two_names():
    assert "a,b".split(",") == ["a", "b"]


@pytest.mark.skip(reason="some day")
def test_some_day():
    assert False
