"""Which devices a run queries."""
