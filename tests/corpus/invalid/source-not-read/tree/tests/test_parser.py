def test_two_names():
    assert "a,b".split(",") == ["a", "b"]
