"""Addresses of runs that were cut. A command that reads runs imports this first, so it imports little."""

from pathlib import Path

PLAN, NEWEST_FOLDER = "plan.json", "newest"
"""Object of a run that was cut; folder of a storage with an object for each audit, the name of its newest run."""


def is_cut_run(address: str) -> bool:
    """Return whether an address is that of a run that was cut, or of a storage of such runs."""
    return "://" in address or (Path(address) / PLAN).is_file() or (Path(address) / NEWEST_FOLDER).is_dir()


def join_address(storage: str, name: str) -> str:
    """Return the address of a run in a storage."""
    return f"{storage.rstrip('/')}/{name}"
