"""Intervals and estimates of shares from random samples: pure mathematics, without a clock, a file or a database."""
