"""What is fuzzed: a module for each kind of file, and :mod:`tests.fuzz.readers.table` of all."""
