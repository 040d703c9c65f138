"""Text: formats, patterns, durations."""
