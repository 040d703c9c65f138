"""What follows a run: report, metrics, webhook."""
