"""Write commands that people copy into a shell: no name or path in one becomes an option or a command of its own."""

import shlex
from collections.abc import Iterable

from auditor.text.formatting import safe


def quote_path(path: object) -> str:
    """Return a path as a word of a command. A relative path that begins with ``-`` gets ``./``, so it is no option."""
    text = safe(path)
    return shlex.quote(f"./{text}" if text.startswith("-") else text)


def format_command(command: str, *paths: object, flags: Iterable[tuple[str, object]] = ()) -> str:
    """Return a command as a line of a shell.

    Args:
        command: program and subcommand, which need no quotes.
        paths: its paths.
        flags: flags with their values, written as ``--flag=VALUE``: a value may begin with ``-``. None: no value.
    """
    options = (flag if value is None else f"{flag}={shlex.quote(safe(value))}" for flag, value in flags)
    return " ".join((command, *map(quote_path, paths), *options))
