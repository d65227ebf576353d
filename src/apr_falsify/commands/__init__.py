"""The programs: one verb a file."""
