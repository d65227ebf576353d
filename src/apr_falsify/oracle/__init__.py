"""HuggingFace capture: the only room that imports torch and transformers."""
