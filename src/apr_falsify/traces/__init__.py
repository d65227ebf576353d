"""What a run left: its stages, where they come from, how they are written and read."""
