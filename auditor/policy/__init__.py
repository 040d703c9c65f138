"""Rules, and whether a run complies."""
