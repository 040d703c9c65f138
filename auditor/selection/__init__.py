"""Which devices a run queries, if not all: incremental, rolling and sample strategies."""
