"""Settings: what an audit is configured to do."""
