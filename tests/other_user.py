"""A second user of this machine: needs root."""

import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

OTHER_USER = 54_321

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a second user needs root")


def let_others_enter(folder: Path) -> None:
    """Let other users read a temporary folder, whose parents are pytest's own."""
    temporary = Path(tempfile.gettempdir())
    for path in (folder, *folder.parents):
        if temporary in path.parents:
            path.chmod(path.stat().st_mode | 0o055)


def as_other_user(work: Callable[[], object]) -> object:
    """Return what a function returns, or the text of its error, in a process of another user."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        try:
            os.setgroups([])
            os.setgid(OTHER_USER)
            os.setuid(OTHER_USER)
            result: object = work()
        except BaseException as error:  # noqa: BLE001  it is compared by the test
            result = repr(error)
        os.write(writing, pickle.dumps(result))
        os._exit(0)
    os.close(writing)
    os.waitpid(child, 0)
    with os.fdopen(reading, "rb") as pipe_end:
        return pickle.loads(pipe_end.read())
