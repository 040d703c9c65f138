"""What the fleet runs: the run folder sealed, queried and proven, every number by a query over its files."""
