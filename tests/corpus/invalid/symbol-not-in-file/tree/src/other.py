"""Another module."""
