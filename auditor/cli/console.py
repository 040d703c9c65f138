"""Write to the standard streams: data to standard output, everything else to standard error, in one format."""

import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from auditor.text.formatting import escape_lines

LogFormat = Literal["text", "json"]
"""Format of every line on standard error: text, or one JSON object a line."""


@dataclass(slots=True)
class LogStyle:
    """How lines on standard error are written by this process."""

    format: LogFormat = "text"


LOG_STYLE = LogStyle()
"""The style of this process; ``log_to_stderr`` sets it."""


def print_error(sentence: str, level: Literal["info", "error"] = "info") -> None:
    """Print a line to standard error; ``level`` is part of a JSON line. An audit continues if it cannot be written."""
    line = format_json_line(sentence, level) if LOG_STYLE.format == "json" else escape_lines(sentence)
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        redirect_to_devnull(2)


def format_json_line(event: str, level: str, **further: str) -> str:
    """Return a line of the log in JSON, with the keys of the lines that structlog writes."""
    import json
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    texts = {"event": event, **further, "level": level, "timestamp": now}
    return json.dumps({key: escape_lines(text) for key, text in texts.items()})


def print_line(line: str) -> None:
    """Print a line to standard output. A reader that has closed the pipe does not change a command's exit code."""
    try:
        sys.stdout.write(f"{escape_lines(line)}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        redirect_to_devnull(1)


def print_path(path: Path) -> None:
    """Print a path to standard output: escaped on a terminal, and exactly for other programs."""
    if sys.stdout.isatty() or not isinstance(sys.stdout, io.TextIOWrapper):
        print_line(str(path))
        return
    try:
        sys.stdout.flush()
        sys.stdout.buffer.write(os.fsencode(path) + b"\n")
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        redirect_to_devnull(1)


def is_dumb_terminal() -> bool:
    """Return whether the terminal can only append text: it has neither colours nor a cursor that moves."""
    return os.environ.get("TERM", "").lower() in {"dumb", "unknown"}


def redirect_to_devnull(descriptor: int) -> None:
    """Redirect a stream whose reader has closed it, so that the last flush does not fail again."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, descriptor)
    os.close(devnull)


def open_standard_streams() -> None:
    """Open closed standard streams as ``/dev/null``, and replace what the encoding of a stream does not have.

    Otherwise files opened later would get their descriptors, and a name could end a command with a UnicodeEncodeError.
    """
    for descriptor, mode in enumerate(("r", "w", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free descriptor, which is this one
            stream = os.fdopen(descriptor, mode, closefd=False)
            setattr(sys, ("stdin", "stdout", "stderr")[descriptor], stream)
    for output, errors in ((sys.stdout, "replace"), (sys.stderr, "backslashreplace")):
        if isinstance(output, io.TextIOWrapper):
            output.reconfigure(errors=errors)
