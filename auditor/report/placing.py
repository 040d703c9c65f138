"""Files that others read while they are replaced: written beside, and put in their place whole."""

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auditor.errors import RunNotWritableError
from auditor.inventory.folder import put_in_place, refuse_own_file

READABLE = 0o644
"""For metrics: who collects them is another user."""


@contextmanager
def replacing(path: Path, *, mode: int | None = None) -> Iterator[Path]:
    """A file in the folder of ``path`` to write to; it takes the place of ``path`` if nothing goes wrong.

    Its name ends in ``.new``, which no collector of metrics reads. Should this process be killed, it stays: in a run
    folder until the next ``resume``, elsewhere until somebody removes it. A link is followed, and stays.

    Args:
        path: the file that is replaced.
        mode: who may read and write it; None: as the file before it, or as the umask wants a new one.

    Raises:
        RunNotWritableError: ``path`` is something else than a file, or it cannot be written.
    """
    target = Path(os.path.realpath(path))
    refuse_own_file(target)
    new = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.new")
    try:
        if target.exists() and not target.is_file():
            raise RunNotWritableError(f"{path}: cannot be replaced: it is not a file")
        mode = _create(new, target, mode)
        yield new
        new.chmod(mode)
        put_in_place(new, target)
    except OSError as error:
        raise RunNotWritableError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


def _create(new: Path, target: Path, mode: int | None) -> int:
    """Makes the file that is written to, which nobody reads sooner who may not read it later; gives its mode."""
    descriptor = os.open(new, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        if mode is None:
            mode = stat.S_IMODE((target.stat() if target.exists() else os.fstat(descriptor)).st_mode) & 0o777
        os.fchmod(descriptor, mode | stat.S_IRUSR | stat.S_IWUSR)
    finally:
        os.close(descriptor)
    return mode
