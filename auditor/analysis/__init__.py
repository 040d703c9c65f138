"""Compare runs: drift between two runs, and the history of versions over many."""
