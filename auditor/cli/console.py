"""Write to the standard streams: data to standard output, everything else to standard error, in one format."""

import io
import os
import re
import sys
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TextIO

from auditor.text.formatting import escape_lines, safe
from auditor.tracing import trace_ids

LogFormat = Literal["text", "json"]
"""Format of every line on standard error: text, or one JSON object a line."""


ProgressStyle = Literal["auto", "line", "json", "none"]
"""How progress is shown: live on a terminal and as lines elsewhere, as lines, as JSON lines, or not at all."""


@dataclass(slots=True)
class LogStyle:
    """How lines on standard error, and those of progress, are written by this process."""

    format: LogFormat = "text"
    progress: ProgressStyle = "auto"


_WORD = re.compile(r"(?<=:) auditor [a-z][^;]+;?| *[^ ]+| +")
"""A command to copy, or a word with the spaces before it."""

LOG_STYLE = LogStyle()
"""The style of this process; ``log_to_stderr`` sets it."""


LABEL_WIDTH = 8
"""Characters of the labels of a run's summary."""


RECENT_LINES: deque[str] = deque(maxlen=40)
"""The last lines of this process on standard error, without colours, for a dead man's switch."""

_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


def remember_line(line: str) -> None:
    """Put what is written to standard error into ``RECENT_LINES``."""
    RECENT_LINES.extend(_COLOURS.sub("", line).splitlines())


def print_error(
    sentence: str, level: Literal["info", "error"] = "info", *, event: str = "result", **values: object
) -> None:
    """Print a line to standard error. An audit continues if it cannot be written.

    A terminal gets lines that end between words. Only a JSON line has ``level``, ``event``, which is one of
    ``LINE_EVENTS``, and ``values``.
    """
    if LOG_STYLE.format == "json":
        _write_error(format_json_line(event, sentence, level, **values))
    else:
        width = _error_width()
        _write_error("\n".join(wrap_words(line, width) for line in escape_lines(sentence).split("\n")))


def print_note(sentence: str) -> None:
    """Print to standard error what to know about the output of a command."""
    print_error(sentence if LOG_STYLE.format == "json" else f"note: {sentence}", event="note")


def print_labelled(label: str, text: str, *, style: str = "", styles: Mapping[str, str] | None = None) -> None:
    """Print a label and a text to standard error, like ``print_error``; further lines are indented behind the label.

    Args:
        label: a word, which has the colour ``style`` on a terminal with colours.
        text: a sentence, which is escaped.
        style: style of Rich.
        styles: styles of words in the text.
    """
    if LOG_STYLE.format == "json":
        print_error(safe(text), event="summary", label=label)
    else:
        _print_styled(f"{label:<{LABEL_WIDTH}} {safe(text)}", {label: style, **(styles or {})}, indent=LABEL_WIDTH + 1)


def print_exit(reason: str, exit_code: int) -> None:
    """Print the reason of an exit code to standard error: the last line of a run."""
    number = f"exit {exit_code}"
    if LOG_STYLE.format == "json":
        print_error(safe(reason), event="exit", exit_code=exit_code)
        return
    _print_styled(safe(reason), {number: "bold red" if exit_code else "bold green"}, indent=len(number) + 1)


def _print_styled(line: str, styles: Mapping[str, str], *, indent: int) -> None:
    """Print a line to standard error; ``styles``: styles of its words, the first one at its start."""
    if (width := _error_width()) is None:
        print_error(line)
        return
    from rich.console import Console
    from rich.text import Text

    shown = Text(wrap_words(line, width, indent))
    for number, (word, style) in enumerate(styles.items()):
        if number:
            shown.highlight_words([word], style)
        else:
            shown.stylize(style, 0, len(word))
    console = Console(stderr=True, highlight=False, markup=False, emoji=False, width=width)
    with console.capture() as captured:
        console.print(shown, soft_wrap=True, end="")
    _write_error(captured.get())


def _write_error(line: str) -> None:
    remember_line(line)
    try:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()
    except OSError:
        redirect_to_devnull(2)


def _error_width() -> int | None:
    """Return the columns of standard error; None if it is no terminal."""
    if not sys.stderr.isatty():
        return None
    try:
        return int(os.environ.get("COLUMNS", "")) or None
    except ValueError:
        pass
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or None
    except (OSError, ValueError):
        return None


def wrap_words(line: str, width: int | None, indent: int = 2) -> str:
    """Return a line as lines that end between words; a longer word, and a command to copy, stay in one line.

    Args:
        line: the line. Spaces at its start stay.
        width: characters of a line; None: any number.
        indent: spaces before the lines after the first one.
    """
    if width is None or len(line) <= width // 2:
        return line
    from rich.cells import cell_len

    start = line[: len(line) - len(line.lstrip(" "))]
    lines = [start]
    for word in _WORD.findall(line[len(start) :]):
        text = word if lines[-1].strip() or not word.isspace() else ""
        if cell_len(f"{lines[-1]}{text}".rstrip()) > width and lines[-1].strip():
            lines.append(" " * indent + word.lstrip(" "))
        else:
            lines[-1] += text
    return "\n".join(each.rstrip() for each in lines)


def format_json_line(event: str, message: str, level: str, **values: object) -> str:
    """Return a line of the log in JSON, with the keys of the lines that structlog writes."""
    import json
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat().replace("+00:00", "Z")
    line = {"event": event, "message": message, **values, "level": level, "timestamp": now, **trace_ids()}
    return json.dumps({key: escape_lines(value) if isinstance(value, str) else value for key, value in line.items()})


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


def has_colours(stream: TextIO) -> bool:
    """Return whether a stream is a terminal with colours, and its user wants them: NO_COLOR is not set."""
    return stream.isatty() and not is_dumb_terminal() and not os.environ.get("NO_COLOR")


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


def print_notes(sentences: Iterable[str]) -> None:
    """Print sentences to standard error, one a line."""
    for sentence in sentences:
        print_note(safe(sentence))
