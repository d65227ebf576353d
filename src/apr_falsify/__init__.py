"""apr-falsify: name the stage of an LLM forward pass that introduced the error."""

__version__ = "0.1.0"
