"""Queries devices: the worker pool, one session per account, its rate limiters, and the state of the run."""
