"""The suite's own exam: seeded faults, on material made for it, judged by the public path."""
