def test_two_names():
    assert "a,b".split(",") == ["a", "b"]


class TestNames:
    def __init__(self):
        self.names = []

    def test_in_class(self):
        assert not self.names
