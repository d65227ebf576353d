"""One verb a file; main.py wires them."""
