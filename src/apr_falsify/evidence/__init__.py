"""Evidence: what a falsifier's run leaves for a reviewer, and how it is re-checked without the GPU."""
