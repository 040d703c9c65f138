"""What changed between runs, and over many."""
