"""Keeping requests within an account's quota, and audits alive when the platform fails.

The rate limiter with its shared quota, retries with a budget, and the circuit breaker.
"""
