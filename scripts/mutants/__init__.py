"""The parts of ``scripts/mutate.py``: what is changed, how it is put in place, how the tests are tried."""
