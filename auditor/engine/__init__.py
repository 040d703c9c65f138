"""Queries devices: the worker pool, the session of each account, its rate limiters, and the state of the run."""
