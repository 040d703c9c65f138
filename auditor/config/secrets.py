"""Read secrets from where they are stored: the environment, a file, or what a command prints."""

import contextlib
import os
import selectors
import stat
import subprocess
import time
from functools import cache
from pathlib import Path
from typing import IO

from auditor.config.settings import SecretSource
from auditor.errors import SettingsError
from auditor.log import log
from auditor.models import Secret
from auditor.storage.files import read_regular_file
from auditor.text.shell import format_command

COMMAND_TIMEOUT = 30.0
"""Seconds that a command may take to print a secret. A person may have to unlock it first."""

MAX_OUTPUT_BYTES = 65_536
"""Maximum bytes to read of a command's output. No key is longer, and a program may print forever."""


def read_secret(source: str | SecretSource, *, account: str | None, key: str) -> Secret:
    """Read a secret from where it is stored. This may wait for a command.

    Args:
        source: where it is stored, or the text itself.
        account: name of the account, for errors; None: it belongs to no account.
        key: settings key, for errors.

    Raises:
        SettingsError: the variable is not set, the file cannot be read or is empty, or the command prints no secret.
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
        text = _decode(run_command(source.command, where), where, place)
        if not text:
            raise SettingsError(f"{where}: {place} is empty; make it print only the key")
    else:
        place = str(source.file)
        text = _decode(_read_file(place, where), where, place)
        if not key.endswith("access_key_id"):  # it is no secret
            _warn_if_others_can_read(os.path.realpath(place))
        if not text:
            raise SettingsError(f"{where}: {place} is empty")
    if not text.isprintable():
        raise SettingsError(f"{where}: {place} contains several lines or a control character; leave only the key")
    return Secret(text)


def _decode(content: bytes, where: str, place: str) -> str:
    text = None
    with contextlib.suppress(ValueError):  # it contains the bytes, and would become the context of our error
        text = content.decode("utf-8-sig").strip()
    if text is None:
        raise SettingsError(f"{where}: {place} cannot be read: it is not UTF-8 text")
    return text


def _read_file(file: str, where: str) -> bytes:
    try:
        return read_regular_file(Path(file))
    except OSError as error:
        raise SettingsError(f"{where}: {file}: cannot be read: {error.strerror}") from error


@cache  # once in a process
def _warn_if_others_can_read(file: str) -> None:
    """Warn if any user of the machine can read a file: its mode and that of each folder above it allow it."""
    path = Path(file)
    try:
        readable = path.stat().st_mode & stat.S_IROTH
        open_to_all = readable and all(folder.stat().st_mode & stat.S_IXOTH for folder in path.parents)
    except OSError:  # reading it worked, and that is enough
        return
    if open_to_all:
        log.warning("secret_readable", file=file, advice=format_command("chmod o-rwx", file))


def run_command(command: tuple[str, ...], where: str) -> bytes:
    """Return what a command prints; raise SettingsError without quoting it. Its standard error is ours."""
    at = f"{where}: the command {command[0]}"
    try:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)  # noqa: S603  no shell
    except (OSError, ValueError) as error:  # ValueError: an argument with a null character
        reason = error.strerror if isinstance(error, OSError) else "an argument contains a null character"
        raise SettingsError(f"{at} cannot be started: {reason}; give one that can") from None
    deadline = time.monotonic() + COMMAND_TIMEOUT
    try:
        text = b"" if process.stdout is None else _read_output(process.stdout, deadline)
        too_long = len(text) > MAX_OUTPUT_BYTES
        code = 0 if too_long else process.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired):
        advice = "run it by hand to see what it waits for"
        raise SettingsError(f"{at} did not end within {COMMAND_TIMEOUT:g} s; {advice}") from None
    finally:
        _kill(process)
    if too_long:
        raise SettingsError(f"{at} prints more than {MAX_OUTPUT_BYTES:,} bytes; make it print only the key")
    if code != 0:
        ended = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        raise SettingsError(f"{at} {ended}; run it by hand to see why")
    return text


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a process that still runs. Do not wait for one of another user, as sudo's may be."""
    if process.stdout is not None:
        process.stdout.close()
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        process.kill()
        process.wait(1.0)


def _read_output(pipe: IO[bytes], deadline: float) -> bytes:
    """Read a pipe until it ends, or until more than ``MAX_OUTPUT_BYTES`` came; raise TimeoutError at the deadline."""
    text = b""
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while len(text) <= MAX_OUTPUT_BYTES:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            chunk = os.read(pipe.fileno(), MAX_OUTPUT_BYTES)
            if not chunk:
                break
            text += chunk
    return text
