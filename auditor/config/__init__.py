"""Settings of an audit: types, loading, rules, secrets and proxies, and how a run stores them."""
