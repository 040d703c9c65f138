"""Audits that are killed and files that are cut: whatever is left, going on ends in the whole truth."""
