"""Tests of fleet files and the snapshot: every kind, every fault, properties against plain Python."""
