"""Files that others read while they are replaced: written beside, and put in their place whole."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from auditor.errors import RunNotWritableError
from auditor.inventory.folder import put_in_place

READABLE = 0o644
"""Whoever shows the page or collects the metrics is another user."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file in the folder of ``path`` to write to; it takes the place of ``path`` if nothing goes wrong.

    Its name ends in ``.new``, which no collector of metrics reads, and which the next ``resume`` removes should this
    process be killed. A link is followed, and stays.

    Raises:
        RunNotWritableError: ``path`` is something else than a file, or it cannot be written.
    """
    target = Path(os.path.realpath(path))
    new = target.with_name(f".{target.name[:100]}.{secrets.token_hex(4)}.new")
    try:
        if target.exists() and not target.is_file():
            raise RunNotWritableError(f"{path}: cannot be replaced: it is not a file")
        yield new
        new.chmod(READABLE)
        put_in_place(new, target)
    except OSError as error:
        raise RunNotWritableError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)
