"""One audit on several machines: shards that share nothing but a storage."""
