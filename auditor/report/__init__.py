"""A run for people and for machines: a page, metrics, a message."""
