"""Hooks after a run: evaluate the policy, write metrics, report and Excel file, send messages."""
