"""Print the interpreters of this machine that auditor supports, one a line."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SUPPORTED = ("3.11", "3.12", "3.13", "3.14")
VERSIONS = tuple(os.environ.get("AUDITOR_PYTHONS", " ".join(SUPPORTED)).split())
"""Versions that are looked for; CI takes the lowest and the newest one that it has."""


def find_python(version: str) -> str | None:
    """Return an interpreter of this version that starts; None if this machine has none."""
    for path in _candidates(version):
        words = (path, "-c", "import sys; print('%d.%d' % sys.version_info[:2])")
        started = subprocess.run(words, capture_output=True, text=True, check=False)
        if started.stdout.strip() == version:
            return path
    return None


def _candidates(version: str) -> Iterator[str]:
    if (found := shutil.which(f"python{version}")) is not None:
        yield found
    versions = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    yield from (str(path) for path in sorted(versions.glob(f"{version}.*/bin/python{version}")))
    unpacked = sorted(ROOT.glob(f"build/debian-*/usr/bin/python{version}"))  # by make debian-python
    yield from map(str, unpacked)


if __name__ == "__main__":
    print("\n".join(path for path in map(find_python, VERSIONS) if path is not None))
