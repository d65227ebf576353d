"""What a model is: its sizes, its stages, its families, and what feeds what."""
