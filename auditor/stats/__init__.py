"""Intervals and estimates; pure mathematics."""
