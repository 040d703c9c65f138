"""Commands in processes of their own that start in milliseconds: forked from one that has imported everything.

Such a process has all that a started one has: its exit code, arguments, environment, folder, streams, signals, umask
and limits. Only the start of the interpreter and the imports are missing; what concerns those starts a real one.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn, TextIO

_LAZY = (
    "anyio._backends._asyncio", "anyio.streams.tls", "anyio.to_thread", "concurrent.futures.thread", "cyclopts.config",
    "docstring_parser", "encodings.ascii", "encodings.idna", "encodings.utf_8_sig",
    "queue", "rich._emoji_codes", "uvloop", "xlsxwriter",
)  # fmt: skip
"""What libraries import at the first use."""

DASK_PROGRAMS = {"scheduler": "distributed.cli.dask_scheduler", "worker": "distributed.cli.dask_worker"}

_MAX_REQUEST = 1 << 17


class ForkedCommand:
    """A command that is running or has ended.

    Attributes:
        words: arguments of ``auditor``.
        pid: of its process.
        returncode: its exit code, or minus the number of the signal that ended it; None: it is running.
    """

    def __init__(self, answers: socket.socket, words: list[str]) -> None:
        self._answers, self.words = answers, words
        self.pid = int(answers.recv(64))
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code.

        Raises:
            subprocess.TimeoutExpired: the command runs for more than ``timeout`` seconds.
        """
        if self.returncode is None:
            if not select.select([self._answers], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.words, timeout or 0)
            self.returncode = os.waitstatus_to_exitcode(int(self._answers.recv(64)))
            self._answers.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the command runs."""
        if self.returncode is None and not select.select([self._answers], [], [], 0)[0]:
            return None
        return self.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the command has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


@cache
def _requests(*, dask: bool) -> socket.socket:
    """Start the process from which commands are forked. It ends when the returned socket is closed."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.forked", str(theirs.fileno()), *(["dask"] if dask else [])],
            pass_fds=[theirs.fileno()], cwd=Path(__file__).parents[1], stdin=subprocess.DEVNULL,
        )  # fmt: skip

    def close() -> None:
        ours.close()
        server.wait()

    atexit.register(close)
    return ours


def start(
    *words: object, cwd: Path, streams: Sequence[int], env: Mapping[str, str] | None = None, dask: bool = False
) -> ForkedCommand:
    """Start a command.

    Args:
        words: arguments of ``auditor``; with ``dask`` also ``scheduler`` or ``worker`` and arguments of that.
        cwd: the folder in which it runs.
        streams: descriptors of its standard input, output and error output.
        env: its environment; None: that of this process.
        dask: whether the process from which it is forked has imported Dask.
    """
    answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    texts = [str(word) for word in words]
    request = json.dumps([texts, str(cwd), dict(os.environ if env is None else env)]).encode()
    with theirs:
        socket.send_fds(_requests(dask=dask), [request], [theirs.fileno(), *streams])
    return ForkedCommand(answers, texts)


class CapturedCommand:
    """A command whose output is captured while it runs."""

    def __init__(
        self,
        *words: object,
        cwd: Path,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        newline: str | None = None,
    ) -> None:
        pipes = [os.pipe() for _ in range(3)]
        ends = [pipes[0][0], pipes[1][1], pipes[2][1]]
        self.command = start(*words, cwd=cwd, streams=ends, env=env)
        for end in ends:
            os.close(end)
        pool = ThreadPoolExecutor(3)
        pool.submit(_write, pipes[0][1], stdin)
        self._out, self._errors = (pool.submit(_read, pipe[0], newline) for pipe in pipes[1:])
        pool.shutdown(wait=False)

    def result(self, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Wait until it ends, and return what it wrote.

        Raises:
            subprocess.TimeoutExpired: it was killed after ``timeout`` seconds.
        """
        try:
            code = self.command.wait(timeout)
        except subprocess.TimeoutExpired:
            self.command.send_signal(signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(self.command.words, code, self._out.result(), self._errors.result())


def run(
    *words: object,
    cwd: Path,
    stdin: str = "",
    env: Mapping[str, str] | None = None,
    newline: str | None = None,
    timeout: float = 120,
) -> subprocess.CompletedProcess[str]:
    """Run a command until it ends, and return what it wrote to its pipes.

    Args:
        words: arguments of ``auditor``.
        cwd: the folder in which it runs.
        stdin: what is in its standard input.
        env: its environment; None: that of this process.
        newline: how its line ends are read; see ``open``.
        timeout: seconds after which it is killed.

    Raises:
        subprocess.TimeoutExpired: it was killed.
    """
    return CapturedCommand(*words, cwd=cwd, stdin=stdin, env=env, newline=newline).result(timeout)


@contextmanager
def serving(*words: object, cwd: Path) -> Iterator[tuple[ForkedCommand, TextIO]]:
    """Run a command until the block ends, and then end it by SIGTERM; yield it and its standard output."""
    reader, writer = os.pipe()
    try:
        command = start(*words, cwd=cwd, streams=[0, writer, 2])
    finally:
        os.close(writer)
    with os.fdopen(reader) as output:
        try:
            yield command, output
        finally:
            command.send_signal(signal.SIGTERM)
            command.wait(10)


def _write(end: int, text: str) -> None:
    with contextlib.suppress(BrokenPipeError), os.fdopen(end, "w") as stream:
        stream.write(text)


def _read(end: int, newline: str | None) -> str:
    with os.fdopen(end, newline=newline) as stream:
        return stream.read()


def _import_all() -> None:
    import auditor

    for module in pkgutil.walk_packages(auditor.__path__, "auditor."):
        if not module.name.endswith(("__main__", "cluster.dask")):  # Dask takes a second, and few commands need it
            importlib.import_module(module.name)
    for name in _LAZY:
        importlib.import_module(name)


def _open_database() -> None:
    """Open the database that the first query of a command uses."""
    from auditor.storage.database import borrow_database

    with borrow_database():
        pass


def _next_command(requests: socket.socket) -> list[str]:
    """Fork for each request. Return in the process of a command its arguments, once it is as if it had been started."""
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, _MAX_REQUEST, 4)
        if not request:
            os._exit(0)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if os.fork() == 0:  # it waits for the command, whose exit status only a parent is told
            answers = socket.socket(fileno=descriptors[0])
            if (command := os.fork()) == 0:
                answers.close()
                requests.close()
                words, folder, env = json.loads(request)
                return _become_command(words, folder, env, descriptors[1:])
            answers.send(str(command).encode())
            os.closerange(0, 3)
            for each in descriptors[1:]:
                os.close(each)
            _, status = os.waitpid(command, 0)
            answers.send(str(status).encode())
            os._exit(0)
        for each in descriptors:
            os.close(each)


def _become_command(words: list[str], folder: str, env: dict[str, str], streams: list[int]) -> list[str]:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(env)
    time.tzset()
    tempfile.tempdir = None
    sys.stdin, sys.stdout, sys.stderr = _text(0, "r"), _text(1, "w"), _text(2, "w", "backslashreplace")
    sys.__stdin__, sys.__stdout__, sys.__stderr__ = sys.stdin, sys.stdout, sys.stderr  # type: ignore[misc]
    sys.argv = ["auditor", *words]
    return words


def _text(number: int, mode: str, errors: str = "strict") -> io.TextIOWrapper:
    """Open a standard stream as the interpreter does."""
    stream = open(number, mode + "b", closefd=False)  # noqa: SIM115
    return io.TextIOWrapper(stream, encoding="utf-8", errors=errors, line_buffering=number == 2 or os.isatty(number))


def _program(arguments: list[str]) -> Callable[[list[str]], object]:
    """Return what runs a command; of programs of Dask, its name is taken off the arguments."""
    if "dask" in sys.modules:
        sys.modules["dask"].config.refresh()  # it is read from the environment at the import
        faulthandler.enable()
    if arguments[0] in DASK_PROGRAMS:
        return importlib.import_module(DASK_PROGRAMS[arguments.pop(0)]).main  # type: ignore[no-any-return]
    from auditor.cli import main

    return main


def _end(arguments: list[str]) -> NoReturn:
    """Run the command and exit as the interpreter does, without the half second in which that frees its memory."""
    code: object = 1
    try:
        code = _program(arguments)(arguments)
    except SystemExit as error:
        code = error.code
    except BaseException:  # noqa: BLE001  the interpreter prints it
        traceback.print_exc()
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, ValueError):  # None or closed
            stream.flush()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)


if __name__ == "__main__":
    _import_all()
    for module in ("auditor.cluster.dask", *DASK_PROGRAMS.values()) if "dask" in sys.argv else ():
        importlib.import_module(module)
    _open_database()
    gc.collect()
    gc.freeze()
    _end(_next_command(socket.socket(fileno=int(sys.argv[1]))))
