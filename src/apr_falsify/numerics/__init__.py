"""Number formats and their exact rounding: dtypes, block formats, and how runtimes hold operands."""
