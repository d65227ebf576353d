class TestX:
    def __init__(self):
        self.a = 1

    def test_a(self):
        assert 1
