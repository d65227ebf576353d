"""What each stage computes."""
