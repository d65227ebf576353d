"""What a Python or Rust file defines, found by parsing it and never by importing or running it."""
