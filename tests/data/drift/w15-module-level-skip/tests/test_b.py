import pytest


@pytest.mark.skip
class TestB:
    def test_b(self):
        assert 1
