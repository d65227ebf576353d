"""What lies here is looked at by tests, and holds none."""

collect_ignore_glob = ["drift/*"]
