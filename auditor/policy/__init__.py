"""Policies: rules about versions and devices, their evaluation on a run, and reports for CI and chat."""
