"""Paths as people write them: relative to a folder, or in a home directory."""

import os
from pathlib import Path


def expand_home(path: str) -> str:
    """Return a path with the home directory for ``~``, ``~/`` or ``~user/`` at its start, as shells do.

    Anywhere else ``~`` is a character: ``~fleet.csv`` is a file of this name, and so is the path of an unknown user.
    """
    # PurePath would raise for an unknown user, and for the name of a file.
    return os.path.expanduser(path) if path == "~" or (path.startswith("~") and "/" in path) else path  # noqa: PTH111


def resolve_path(folder: Path, path: str) -> str:
    """Return a path of the settings in a folder, as a path of the working directory."""
    return str(folder / expand_home(path))
