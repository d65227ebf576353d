"""Contracts: their reader, their rules, the tally of what they claim. Knows neither traces nor evidence."""
