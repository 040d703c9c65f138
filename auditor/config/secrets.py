"""Secrets, from where the settings say that they lie: the environment, a file, or what a command prints."""

import contextlib
import os
import selectors
import shlex
import stat
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import IO

import structlog

from auditor.config.settings import SecretSource
from auditor.errors import SettingsError
from auditor.models import Secret

log = structlog.get_logger()


COMMAND_SECONDS = 30.0
"""Seconds that a command may take to print a secret; somebody may have to unlock it first."""


LONGEST = 65_536
"""Bytes that are read of what a command prints: no key is so long, and a program may print without end."""


def read_secret(source: str | SecretSource, *, account: str | None, key: str) -> Secret:
    """A secret of an account, or of none, from where the settings say that it lies. It may wait for a command.

    Raises:
        SettingsError: the variable is not set, the file cannot be read or is empty, or the command gives no secret.
    """
    if isinstance(source, str):
        return Secret(source)
    where = key if account is None else f'account "{account}": {key}'
    if source.env is not None:
        place = f"the environment variable {source.env}"
        text = os.environ.get(source.env, "").strip()
        if not text:
            raise SettingsError(f"{where}: {place} is not set, or empty")
    elif source.command is not None:
        place = f"what the command {source.command[0]} prints"
        text = _decoded(_printed(source.command, where), where, place)
        if not text:
            raise SettingsError(f"{where}: {place} is empty; let it print the key alone")
    else:
        place = str(source.file)
        text = _decoded(_content(place, where), where, place)
        if not text:
            raise SettingsError(f"{where}: {place} is empty")
    if not text.isprintable():
        raise SettingsError(f"{where}: {place} holds more than one line, or a control character; leave only the key")
    return Secret(text)


def _decoded(content: bytes, where: str, place: str) -> str:
    text = None
    with contextlib.suppress(ValueError):  # it holds the bytes, and would go along as the context of ours
        text = content.decode("utf-8-sig").strip()
    if text is None:
        raise SettingsError(f"{where}: {place} cannot be read: it is not UTF-8 text")
    return text


def _content(file: str, where: str) -> bytes:
    try:
        content = Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"{where}: {file} cannot be read: {error.strerror}") from error
    _warn_if_others_can_read(os.path.realpath(file))
    return content


@cache  # said once in a process, however many read it
def _warn_if_others_can_read(file: str) -> None:
    """Warns of a file that any user of the machine can read: its mode lets him, and so does every folder above it."""
    path = Path(file)
    try:
        readable = path.stat().st_mode & stat.S_IROTH
        open_to_all = readable and all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
    except OSError:  # it was read all the same
        return
    if open_to_all:
        log.warning("others can read a secret", file=file, advice=f"chmod o-rwx {shlex.quote(file)}")


def _printed(command: tuple[str, ...], where: str) -> bytes:
    """What a command prints. It is told to nobody, not even in errors; its standard error is ours.

    Raises:
        SettingsError: it cannot be started, does not end in time, or ends with anything but 0.
    """
    program = command[0]
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603  no shell
    except (OSError, ValueError) as error:  # ValueError: a character that no argument may hold
        reason = error.strerror if isinstance(error, OSError) else "an argument holds what none may"
        raise SettingsError(f"{where}: the command {program} cannot be started: {reason}; name one that can") from None
    until = time.monotonic() + COMMAND_SECONDS
    try:
        text = b"" if process.stdout is None else _read_until(process.stdout, until)
        endless = len(text) > LONGEST
        code = 0 if endless else process.wait(max(0.0, until - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        sentence = (
            f"the command {program} was not done in {COMMAND_SECONDS:g} s; run it by hand to see what it waits for"
        )
        raise SettingsError(f"{where}: {sentence}") from None
    finally:
        _end(process)
    if endless:
        raise SettingsError(f"{where}: the command {program} prints without end; let it print the key alone")
    if code != 0:
        ended = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        raise SettingsError(f"{where}: the command {program} {ended}; run it by hand to see why")
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process, if it has not ended, and does not wait for one that is another user's, as sudo's may be."""
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait(1.0)


def _read_until(pipe: IO[bytes], until: float) -> bytes:
    """What comes out of a pipe until it ends, or until it is longer than any secret; raises TimeoutError."""
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(text) <= LONGEST:
            if not selector.select(max(0.0, until - time.monotonic())):
                raise TimeoutError
            part = os.read(pipe.fileno(), LONGEST)
            if not part:
                break
            text += part
    return text
