"""The fan-out's parts: pages, journal, scheduler and the run folder's birth."""
