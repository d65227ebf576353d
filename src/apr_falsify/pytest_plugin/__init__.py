"""Falsifiers under pytest: markers from contracts, lanes, outcomes, evidence bundles."""
