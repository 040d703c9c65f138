"""Text that people read and write: numbers, times, escaped names, durations and glob patterns."""
