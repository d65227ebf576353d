"""Nothing below ``invalid`` is a test of ours: its trees belong to the contracts that name them."""

collect_ignore_glob = ["invalid/*"]
