"""One command in a process of its own: forked with everything imported, limited, and watched."""

import contextlib
import faulthandler
import io
import os
import pickle
import resource
import select
import shutil
import signal
import stat
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from auditor.simulator.server import DEFAULT_ACCOUNT
from tests.fuzz.decoder import machine_factor

MAX_SECONDS = 10.0
"""Processor time of a command on a machine of usual speed."""

_KILL_SECONDS = 6 * MAX_SECONDS
"""Processor time after which a command is killed on any machine."""

MAX_IDLE = 30.0
"""Elapsed seconds in which a command must end, or use the processor: other programs may use it meanwhile."""

MAX_MEMORY = 1 << 30
"""Resident bytes of a command at its peak."""

_HARD_MEMORY, _HARD_FILE = 4 << 30, 2 << 30
"""Bytes that the system refuses to exceed, so that a finding does not stop the machine.

A command may use as much memory in addition to that of its process when it was forked. No file may be larger."""

DOCUMENTED_EXITS = frozenset({0, 1, 2, 3, 4})
"""Exit codes of a command that no signal ends."""

_FORBIDDEN_EXIT = 97

MAX_ERROR_OUTPUT = 200_000
"""Bytes of standard error: sentences, and not what a file contains."""

_PROGRAMS = frozenset({"subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty"})
_CHANGES = frozenset(
    {
        "os.remove",
        "os.rename",
        "os.link",
        "os.symlink",
        "os.mkdir",
        "os.rmdir",
        "os.chmod",
        "os.chown",
        "os.truncate",
        "shutil.rmtree",
    }
)
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


ENVIRONMENT = {
    "AUDITOR_TEST_KEY": "simulated-key-us",
    "AUDITOR_TEST_SECRET": "hidden-secret",
    "AUDITOR_TEST_WEBHOOK": "http://127.0.0.1:1/hook",
    "AUDITOR_TEST_SIGNING": "whsec_aGlkZGVuLXNpZ25pbmcta2V5LW9mLXRlc3Rz",
}
"""Variables that settings name."""


SECRETS = (DEFAULT_ACCOUNT.secret.reveal().encode(), ENVIRONMENT["AUDITOR_TEST_SECRET"].encode())
"""What no command prints."""


@dataclass(frozen=True)
class Case:
    """A command to run on mutated files.

    Attributes:
        what: the mutation.
        arguments: of the command line.
        may_change: folders and files that the command may change, beside its output folder and its state.
        refused_exits: exit codes that would be wrong here.
        ports: of this machine, to which it may connect.
        refuse_quietly: a connection or program is denied as by the system, and is no finding: the operator's own
            settings, mutated, may name any.
        start: called in the process before the command; returns more ports.
    """

    what: str
    arguments: tuple[str, ...]
    may_change: tuple[Path, ...] = ()
    refused_exits: frozenset[int] = frozenset()
    ports: frozenset[int] = frozenset()
    refuse_quietly: bool = False
    start: Callable[[], frozenset[int]] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, seconds of its processor time, and bytes of memory at its peak."""

    exit_code: int
    seconds: float
    waited: float
    memory: int
    findings: tuple[str, ...]
    error_output: str


class Sandbox:
    """The folder of a command and its neighbours: what it must not touch, and where it may write.

    The path of the folder is always the same, so that settings with absolute paths remain those of a run.
    """

    def __init__(self, work: Path) -> None:
        self.folder = work / "case"
        self.outside, self.out = self.folder / "outside", self.folder / "out"
        self._results = work / "results"

    def reset(self) -> None:
        """Empty the folder, and put what must not be touched beside it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.rmtree(self._results, ignore_errors=True)
        self._results.mkdir(parents=True)
        for name in ("outside", "out", "tmp", "home", "state", "runtime", "cwd"):
            (self.folder / name).mkdir(parents=True, mode=0o700)
        (self.outside / "precious").write_bytes(b"mine\ntorn")
        (self.outside / "run.json").write_bytes(b"{}")
        (self.outside / "folder").mkdir()

    def call(self, work: Callable[[], Any]) -> Any:
        """Return what a function returns in a forked process, whose threads and memory end with it."""
        reading, writing = os.pipe()
        if (child := os.fork()) == 0:
            status = 1
            try:
                os.close(reading)
                self._use_folder()
                _limit(resource.RLIMIT_DATA, _data_size() + _HARD_MEMORY)
                with os.fdopen(writing, "wb") as pipe_end:
                    pickle.dump(work(), pipe_end)
                status = 0
            except BaseException:  # noqa: BLE001  it is shown, and the parent raises
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe_end:
            content = pipe_end.read()
        if os.waitpid(child, 0)[1] != 0:
            raise RuntimeError("a function ended with an error in its process")
        return pickle.loads(content)

    def run(self, case: Case) -> Ended:
        """Run a command, and check how it ended and what it changed."""
        before = _state(self.folder)
        began = time.monotonic()
        if (child := os.fork()) == 0:
            self._become_command(case)
        status, usage, in_time = self._wait(child)
        waited = time.monotonic() - began
        code = os.waitstatus_to_exitcode(status)
        seconds, memory = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
        findings = list(self._check_end(case, code, seconds, memory, in_time=in_time))
        findings += self._check_changes(case, before, ended=in_time)
        errors = self._read("stderr").decode("utf-8", "backslashreplace")
        return Ended(code, seconds, waited, memory, tuple(findings), errors)

    def _read(self, name: str) -> bytes:
        path = self._results / name
        return path.read_bytes()[: 10 * MAX_ERROR_OUTPUT] if path.exists() else b""

    def _use_folder(self) -> None:
        environment = {"HOME": "home", "TMPDIR": "tmp", "XDG_STATE_HOME": "state", "XDG_RUNTIME_DIR": "runtime"}
        os.environ.update(ENVIRONMENT | {key: str(self.folder / name) for key, name in environment.items()})
        tempfile.tempdir = str(self.folder / "tmp")
        os.chdir(self.folder / "cwd")

    def _wait(self, child: int) -> tuple[int, resource.struct_rusage, bool]:
        """Wait for a process; kill it if it computes for too long, or neither computes nor ends."""
        handle, computed, is_alive, in_time = os.pidfd_open(child), -1.0, True, True
        try:
            while is_alive and in_time:
                is_alive = not select.select([handle], [], [], MAX_IDLE)[0]
                before, computed = computed, _processor_seconds(child)
                in_time = not is_alive or before < computed < _KILL_SECONDS
            if is_alive:
                signal.pidfd_send_signal(handle, signal.SIGABRT)  # which prints where it is
            _, status, usage = os.wait4(child, 0)
        except KeyboardInterrupt:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            os.waitpid(child, 0)
            raise
        finally:
            os.close(handle)
        return status, usage, in_time

    def _check_end(self, case: Case, code: int, seconds: float, memory: int, *, in_time: bool) -> Iterator[str]:
        if not in_time:
            yield f"does not end: {self._read('hang').decode()[-3_000:]}"
        elif code == _FORBIDDEN_EXIT:
            yield f"forbidden: {self._read('forbidden').decode('utf-8', 'replace')}"
        elif code not in DOCUMENTED_EXITS or code in case.refused_exits:
            yield f"exit code {code}"
        if seconds > MAX_SECONDS and seconds > (limit := MAX_SECONDS * machine_factor()):
            yield f"takes {seconds:.1f} s of processor time, more than {limit:.1f}"
        if memory > MAX_MEMORY:
            yield f"takes {memory / 1e6:,.0f} MB"
        errors = self._read("stderr")
        if len(errors) > MAX_ERROR_OUTPUT:
            yield "a long standard error"
        text = errors.decode("utf-8", "replace")
        if any(word in text for word in ("Traceback (most", "Exception ignored", "Fatal Python", "INTERNAL Error")):
            yield "a traceback"
        if odd := {letter for letter in text if not letter.isprintable()} - {"\n"}:
            yield f"standard error with {sorted(odd)}"
        yield from self._find_secrets(errors)

    def _find_secrets(self, errors: bytes) -> Iterator[str]:
        if any(secret in content for secret in SECRETS for content in (errors, self._read("stdout"))):
            yield "prints a secret"

    def _check_changes(self, case: Case, before: dict[str, object], *, ended: bool) -> Iterator[str]:
        after = _state(self.folder)
        allowed = tuple(map(str, (self.out, self.folder / "state", self.folder / "runtime", *case.may_change)))
        for path in sorted(before.keys() | after.keys()):
            is_allowed = path in allowed or path.startswith(tuple(f"{each}/" for each in allowed))
            if is_allowed or before.get(path) == after.get(path):
                continue
            if Path(path).parent == self.folder / "tmp" and not ended:
                continue
            kind = "creates" if path not in before else "removes" if path not in after else "changes"
            yield f"{kind} {Path(path).relative_to(self.folder)}"

    def _become_command(self, case: Case) -> NoReturn:
        code = 96
        try:
            self._use_folder()
            ports = case.ports if case.start is None else case.ports | case.start()
            self._redirect()
            faulthandler.enable((self._results / "hang").open("w"))
            _limit(resource.RLIMIT_DATA, _data_size() + _HARD_MEMORY)
            _limit(resource.RLIMIT_FSIZE, _HARD_FILE)
            _limit(resource.RLIMIT_CORE, 0)
            forbidden = os.open(self._results / "forbidden", os.O_WRONLY | os.O_CREAT, 0o600)
            sys.addaudithook(_Guard(self.folder, ports, forbidden, quiet=case.refuse_quietly).check)
            from auditor.cli import main

            code = main(case.arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
        except BaseException:  # noqa: BLE001  as the interpreter would
            traceback.print_exc()
            code = 1
        finally:
            for stream in (sys.stdout, sys.stderr):
                with contextlib.suppress(OSError, ValueError):
                    stream.flush()
            os._exit(code)

    def _redirect(self) -> None:
        """Connect the standard streams with files, as a shell does."""
        streams: tuple[tuple[str | Path, int], ...] = (
            ("/dev/null", os.O_RDONLY),
            (self._results / "stdout", os.O_WRONLY | os.O_CREAT),
            (self._results / "stderr", os.O_WRONLY | os.O_CREAT),
        )
        for number, (path, flags) in enumerate(streams):
            descriptor = os.open(path, flags, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        sys.stdin, sys.stdout, sys.stderr = (
            io.TextIOWrapper(os.fdopen(number, mode, closefd=False), encoding="utf-8")
            for number, mode in enumerate(("rb", "wb", "wb"))
        )


class _Guard:
    """Ends a process that runs a program, connects elsewhere, or writes outside of its folder."""

    def __init__(self, folder: Path, ports: frozenset[int], report: int, *, quiet: bool) -> None:
        # In quiet mode the program of the settings may run: it prints a key.
        self._folder, self._ports, self._report, self._quiet = str(folder), ports, report, quiet

    def check(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Handle an audit event of the interpreter."""
        if event in _PROGRAMS:
            if not (self._quiet and arguments[0] == "printenv"):
                self._refuse(f"runs {arguments[0]!r}")
        elif event in {"socket.connect", "socket.sendto"}:
            self._check_address(arguments[1])
        elif event == "socket.getaddrinfo":
            if arguments[0] not in {"127.0.0.1", "localhost", "::1", None, b"127.0.0.1", b"localhost"}:
                self._refuse(f"looks up {arguments[0]!r}")
        elif event == "open":
            path, _, flags = arguments
            if isinstance(flags, int) and flags & _WRITES:
                self._check_path("writes", path)
        elif event in _CHANGES:
            self._check_path(event, arguments[0])

    def _check_address(self, address: object) -> None:
        if isinstance(address, tuple) and not (address[0] in {"127.0.0.1", "::1"} and address[1] in self._ports):
            self._refuse(f"connects to {address}")

    def _check_path(self, verb: str, path: object) -> None:
        if isinstance(path, str | bytes | os.PathLike):
            text = os.fsdecode(os.fspath(path))
            # A relative path may be relative to a folder's descriptor; the state of the folder shows what became of it.
            if Path(text).is_absolute() and not text.startswith((self._folder, "/dev/null", "/proc/self/fd/")):
                self._refuse(f"{verb} {text!r}")

    def _refuse(self, sentence: str) -> None:
        if self._quiet:
            raise PermissionError(13, os.strerror(13), "refused by the test")
        os.write(self._report, (sentence + "\n" + "".join(traceback.format_stack(limit=12))).encode("utf-8", "replace"))
        os._exit(_FORBIDDEN_EXIT)


def _limit(kind: int, size: int) -> None:
    """Set a limit of this process, which it cannot raise again."""
    resource.setrlimit(kind, (size, size))


def _data_size() -> int:
    """Return the bytes of this process's data, as its limit counts them; see proc(5)."""
    return int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()


def _processor_seconds(process: int) -> float:
    """Return the seconds that a process has computed, in steps of a hundredth; see proc(5)."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _state(folder: Path) -> dict[str, object]:
    """Return every entry below a folder, and all of its metadata that a change changes."""
    found: dict[str, object] = {}
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            path = os.path.join(parent, name)  # noqa: PTH118  ten thousand folders
            entry = os.lstat(path)
            kind = (stat.S_IFMT(entry.st_mode), stat.S_IMODE(entry.st_mode), entry.st_uid, entry.st_gid)
            is_folder = stat.S_ISDIR(entry.st_mode)
            found[path] = kind if is_folder else (*kind, entry.st_ino, entry.st_size, entry.st_mtime_ns, entry.st_nlink)
    return found
