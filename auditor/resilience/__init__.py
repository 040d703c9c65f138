"""How fast: the quota as a gate, what answers teach, and repeats."""
