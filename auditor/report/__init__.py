"""The report: a self-contained HTML page of a run, its history, its changes and its policy."""
