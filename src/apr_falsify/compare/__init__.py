"""Bring two traces to one layout, compare them, and say where they part."""
