"""Shards whose processes are killed, suspended and started twice, as an array job or by Dask, on storages that go away."""

import math
import os
import random
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import orjson

from auditor.cluster.attempts import ATTEMPTS, MARKERS, PARTS
from auditor.cluster.merge import DONE_SHARDS
from auditor.cluster.plan import ShardPlan
from auditor.cluster.records import expand_lines
from auditor.cluster.storage import find_object, join_address, open_run
from auditor.errors import ObjectStoreError
from auditor.runs.folder import FAILURES, RESULTS
from auditor.runs.manifest import MANIFEST
from auditor.storage.object_store import ObjectStore, open_store
from auditor.text.formatting import parse_manifest_time
from tests import forked
from tests.storage.s3 import S3

KEYS = {"access_key_id": "AKID", "secret_access_key": "SECRET"}

MAX_EVENTS = 8
MAX_STARTS = 60
"""Starts of programs in a round, after which it is a live-lock."""

SEALING_INTERVAL = 0.1
"""Seconds between two checks whether all shards are done and the run is not sealed."""

RESTART_SECONDS = 0.2
"""Seconds after which a scheduler starts what has ended."""

MAX_FAILED_PER_EVENT = 6
"""Exits with 3 that one absence of the storage, or one end of a scheduler, can cause: of each program, and again."""

MAX_FAILED_BY_CHANCE = 2
"""Exits with 3 in a round on a storage that fails now and then: each needs several failures in a row."""

HINDERED_SECONDS = 3.0
"""Seconds after an absence of the storage, or a suspension, in which a checkpoint may be late."""

LATE_SECONDS = 1.0
"""Seconds that a checkpoint may be late on a machine that other tests use, too."""


class Place(Protocol):
    """Where runs are stored, and how it goes away.

    Attributes:
        address: of the storage of all runs.
        environment: variables of the processes that use it.
        failures: fraction of the requests that fail between ``begin`` and ``end``, while it is there.
    """

    failures: float
    address: str
    environment: Mapping[str, str]

    def open(self, run: str) -> ObjectStore:
        """Return the storage of a run; its address begins with that of the place."""

    def begin(self) -> None:
        """Let requests fail now and then from now on."""

    def end(self) -> None:
        """Let no request fail."""

    def leave(self) -> None:
        """Go away."""

    def return_(self) -> None:
        """Be there again."""


class DirectoryPlace:
    """A directory that is not mounted for a while."""

    failures = 0.0

    def __init__(self, folder: Path) -> None:
        self._path = folder / "shared"
        self._path.mkdir()
        self.address = str(self._path)
        self.environment: Mapping[str, str] = {}

    def open(self, run: str) -> ObjectStore:
        return open_run(join_address(self.address, run), create=True)

    def begin(self) -> None: ...

    def end(self) -> None: ...

    def leave(self) -> None:
        self._path.rename(self._path.with_name("away"))

    def return_(self) -> None:
        self._path.with_name("away").rename(self._path)


class BucketPlace:
    """A bucket. Of its requests, a few fail while it is there, and all while it is away.

    A request that fails is refused, or is carried out without an answer.
    """

    failures = 0.02

    def __init__(self, s3: S3, folder: Path) -> None:
        self._s3 = s3
        self.address = f"s3://lake/{folder.parent.name}/{folder.name}"
        self.environment: Mapping[str, str] = s3.environment
        self.end()

    def open(self, run: str) -> ObjectStore:
        return open_store(join_address(self.address, run), {**self._s3.options, **KEYS})

    def begin(self) -> None:
        self._s3.failures = self.failures

    def end(self) -> None:
        self._s3.failures = 0.0

    def leave(self) -> None:
        self._s3.failures = 1.0

    def return_(self) -> None:
        self.begin()


@dataclass(eq=False)
class Program:
    """A process that its scheduler, or an operator, starts again.

    Attributes:
        name: what it does: ``shard 0``, ``driver``.
        words: arguments of its command.
        process: the process.
        scratch: its folder for temporary files.
        continue_at: when it is continued; None: it is not suspended.
        continued_at: when it was continued for the last time, in seconds since 1970; 0: it never was.
        killed_at: when it was killed, likewise.
    """

    name: str
    words: tuple[object, ...]
    process: forked.ForkedCommand
    scratch: Path
    continue_at: float | None = None
    continued_at: float = 0.0
    killed_at: float = 0.0

    @property
    def has_journal(self) -> bool:
        """Whether it queries shards: neither a scheduler nor a driver does."""
        return self.name.startswith(("shard", "worker"))


@dataclass(frozen=True, slots=True)
class CutRun:
    """A run that was cut, in an own folder for what its programs write."""

    folder: Path
    place: Place
    address: str
    storage: ObjectStore
    plan: ShardPlan
    settings: Path


class Job:
    """Programs that query the shards of one run, and what happens to them.

    Args:
        run: the run.
        rng: decides what happens.

    Attributes:
        pauses: minimum and maximum seconds between two events.
        events: what happened, by kind.
        codes: exit codes.
        lost: lines that a killed process had written and not stored, by kill.
    """

    dask = False
    pauses = (0.05, 0.4)
    kinds: tuple[str, ...] = ("kill", "kill", "suspend", "suspend", "twice", "away")

    def __init__(self, run: CutRun, rng: random.Random) -> None:
        self._run, self._storage, self._plan, self._rng = run, run.storage, run.plan, rng
        self._folder, self._place = run.folder, run.place
        self._environment = {**os.environ, **run.place.environment, "AUDITOR_SETTINGS": str(run.settings)}
        self._output = (run.folder / "output.txt").open("ab")
        self._programs: list[Program] = []
        self._waiting: list[tuple[float, Program]] = []
        self._killed: list[Program] = []
        self._kills = Counter[str]()
        self._away_since: list[float] = []
        self._away_until: float | None = None
        self.starts, self.codes, self.events = Counter[str](), Counter[int](), Counter[str]()
        self.lost: list[int] = []

    def start(self, name: str, *words: object) -> None:
        self.starts[name] += 1
        assert self.starts.total() <= MAX_STARTS, f"no end: {self.starts}, {self.codes}, {self.events}"
        scratch = self._folder / f"scratch-{self.starts.total()}"
        scratch.mkdir()
        env = {**self._environment, "TMPDIR": str(scratch)}
        streams = [0, self._output.fileno(), self._output.fileno()]
        process = forked.start(*words, cwd=self._folder, streams=streams, env=env, dask=self.dask)
        self._programs.append(Program(name, words, process, scratch))

    def start_again(self, program: Program) -> None:
        """Start a program that has ended, after a pause, as schedulers do."""
        self._waiting.append((time.monotonic() + RESTART_SECONDS, program))

    def poll(self) -> bool:
        """Note which programs have ended, and start them again; return whether the run is sealed and all have ended."""
        now = time.monotonic()
        if self._away_until is not None and now >= self._away_until:
            self._place.return_()
            self._away_until = None
        for each in list(self._programs):
            if each.continue_at is not None and now >= each.continue_at:
                self._continue(each)
            if each.process.poll() is not None:
                self._programs.remove(each)
                self._note_end(each)
        for start_at, each in [entry for entry in self._waiting if now >= entry[0]]:
            self._waiting.remove((start_at, each))
            self.start(each.name, *each.words)
        return self._is_done()

    def _note_end(self, program: Program) -> None:
        code = program.process.returncode or 0
        self.codes[code] += 1
        if code == -signal.SIGKILL and program.has_journal:
            self._killed.append(program)
        assert code in {0, 3, 75, -signal.SIGKILL}, (program.name, code, self.read_output())
        assert self.codes[3] <= self._max_failed(), (program.name, self.codes, self.events, self.read_output())
        self._after(program, code)

    def _max_failed(self) -> int:
        """Return how many exits with 3 are right: by absences of the storage, and by chance if it fails now and then."""
        return MAX_FAILED_PER_EVENT * len(self._away_since) + (MAX_FAILED_BY_CHANCE if self._place.failures else 0)

    def _after(self, program: Program, code: int) -> None:
        """Start a program again if it is to."""
        raise NotImplementedError

    def _is_done(self) -> bool:
        raise NotImplementedError

    def _disturbable(self) -> list[Program]:
        return [each for each in self._programs if each.continue_at is None]

    def _continue(self, program: Program) -> None:
        program.continue_at, program.continued_at = None, time.time()
        program.process.send_signal(signal.SIGCONT)

    def disturb(self) -> None:
        """Let something happen."""
        kind, running = self._rng.choice(self.kinds), self._disturbable()
        if not running or self.events.total() >= MAX_EVENTS or (kind == "away" and self._away_until):
            return
        self.events[kind] += 1
        program = self._rng.choice(running)
        match kind:
            case "kill":
                self._kill(program)
            case "suspend":
                self._suspend(program, self._rng.uniform(0.1, 1.5))
            case "twice":
                self._start_twice(program)
            case _:
                self._away_since.append(time.time())
                self._away_until = time.monotonic() + self._rng.uniform(0.05, 0.6)
                self._place.leave()

    def _kill(self, program: Program) -> None:
        program.process.send_signal(signal.SIGKILL)
        program.killed_at = time.time()
        self._kills[program.name] += 1

    def _suspend(self, program: Program, seconds: float) -> None:
        program.process.send_signal(signal.SIGSTOP)
        program.continue_at = time.monotonic() + seconds

    def _start_twice(self, program: Program) -> None:
        self.start(program.name, *program.words)

    def _runs(self, name: str) -> bool:
        """Return whether a program runs, or is to be started again."""
        return any(each.name == name for each in (*self._programs, *(each for _, each in self._waiting)))

    def is_sealed(self) -> bool:
        with suppress(ObjectStoreError):
            return find_object(self._storage, MANIFEST) is not None
        return False

    def read_output(self) -> str:
        return (self._folder / "output.txt").read_text()[-4000:]

    def close(self) -> None:
        """Kill what runs, and let the storage be there."""
        for each in self._programs:
            with suppress(ProcessLookupError):
                each.process.send_signal(signal.SIGKILL)
            each.process.wait(10)
        self._output.close()
        if self._away_until is not None:
            self._place.return_()
        self._place.end()

    def check_attempts(self) -> None:
        """Check that each shard was attempted."""
        for shard in self._plan.shards:
            assert self._storage.list(f"{shard.folder}/{ATTEMPTS}")

    def check_losses(self) -> None:
        """Check that a killed process has lost no line that was written before its last checkpoint.

        An attempt that another one superseded ends at that moment: lines that it writes later are rightly not stored,
        and soon there are none. What was continued, or whose storage went away, shortly before may be later.
        """
        stored = set(self._stored_lines())
        for program in self._killed:
            lost = 0
            for path in _journals(program.scratch):
                written = [_written_at(line) for line in set(_complete_lines(path)) - stored]
                lost += len(written)
                if written and not self._was_hindered(program):
                    superseded_at = self._superseded_at(path.parents[1].name)
                    late = self._plan.checkpoint + LATE_SECONDS
                    found = (program.name, path.name, min(written), superseded_at, program.killed_at)
                    assert min(program.killed_at, superseded_at) - min(written) <= late, found
                    assert max(written) - max(superseded_at, program.continued_at) <= late, found
            self.lost.append(lost)

    def _was_hindered(self, program: Program) -> bool:
        hindrances = (program.continued_at, *self._away_since)
        return any(program.killed_at - HINDERED_SECONDS < each <= program.killed_at for each in hindrances)

    def _superseded_at(self, attempt: str) -> float:
        """Return when a greater attempt at the same shard began; infinity: never."""
        for shard in self._plan.shards:
            markers = {
                each.key.rpartition("/")[2]: each.key for each in self._storage.list(f"{shard.folder}/{MARKERS}")
            }
            if attempt in markers:
                greater = [self._storage.get(key).decode() for name, key in markers.items() if name > attempt]
                return min(map(_timestamp, greater), default=math.inf)
        raise AssertionError(f"no shard has the attempt {attempt}")

    def _stored_lines(self) -> Iterator[bytes]:
        for each in self._storage.list("shards"):
            if f"/{PARTS}/" in each.key:
                yield from expand_lines(self._storage.get(each.key), each.key).splitlines()


def _journals(scratch: Path) -> Iterator[Path]:
    """Yield the journals that a killed process has left, as ``ATTEMPT/RUN/NAME``."""
    for name in (RESULTS, FAILURES):
        yield from scratch.rglob(name)


def _complete_lines(path: Path) -> list[bytes]:
    content = path.read_bytes()
    return content[: content.rfind(b"\n") + 1].splitlines()


def _written_at(line: bytes) -> float:
    record = orjson.loads(line)
    return _timestamp(record.get("audited_at") or record["failed_at"])


def _timestamp(text: str) -> float:
    """Return a time of a record in seconds since 1970."""
    time_of_record = parse_manifest_time(text)
    assert time_of_record is not None
    return time_of_record.timestamp()


class ArrayJob(Job):
    """Each index is started again until it has ended with 0, as array jobs do, and never after 75.

    A suspended process counts as that of a lost node: the index is started elsewhere, and the other one continues later.
    """

    def __init__(self, run: CutRun, rng: random.Random) -> None:
        super().__init__(run, rng)
        self._words = ("shard", run.address, "--settings", run.settings)
        self._done: set[str] = set()
        self._checked_at = 0.0
        for index in range(len(self._plan.shards)):
            self._start_index(index)

    def _start_index(self, index: int) -> None:
        self.start(f"shard {index}", *self._words, "--index", index)

    def _after(self, program: Program, code: int) -> None:
        if code == 0:
            self._done.add(program.name)
        elif code != 75:
            self.start_again(program)

    def _suspend(self, program: Program, seconds: float) -> None:
        super()._suspend(program, seconds)
        self.start(program.name, *program.words)

    def _is_done(self) -> bool:
        for name in self.starts.keys() - self._done:
            assert self._runs(name), f"{name}: all its processes were superseded"
        if self._programs and not self.events["sealers"]:
            self._start_sealers()
        return not self._programs and not self._waiting

    def _start_sealers(self) -> None:
        """Let two more processes seal the run while another one does, which may be suspended or killed."""
        if time.monotonic() < self._checked_at + SEALING_INTERVAL:
            return
        self._checked_at = time.monotonic()
        with suppress(ObjectStoreError):
            if len(self._storage.list(DONE_SHARDS)) < len(self._plan.shards) or self.is_sealed():
                return
            self.events["sealers"] += 1
            for each in self._disturbable():
                match self._rng.choice(("suspend", "kill", "leave")):
                    case "suspend":
                        super()._suspend(each, self._rng.uniform(0.1, 0.5))
                    case "kill":
                        self._kill(each)
            for index in self._rng.sample(range(len(self._plan.shards)), 2):
                self._start_index(index)

    def check_attempts(self) -> None:
        """Check that no process has made a second attempt after it was superseded."""
        for index, shard in enumerate(self._plan.shards):
            markers = len(self._storage.list(f"{shard.folder}/{MARKERS}"))
            assert 1 <= markers <= self.starts[f"shard {index}"]


class DaskJob(Job):
    """A scheduler, two workers and a driver; each is started again when it has ended, until the run is sealed.

    A driver that was superseded is started again only if no other one runs: then no program would seal the run. Dask
    moves tasks, so that starts of programs do not bound the attempts at a shard.
    """

    dask = True
    pauses = (0.2, 1.2)
    kinds = ("kill", "kill", "kill", "suspend", "twice", "away")

    def __init__(self, run: CutRun, rng: random.Random) -> None:
        super().__init__(run, rng)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        address = f"tcp://127.0.0.1:{port}"
        self.start("scheduler", "scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard")
        for number in range(2):
            self.start(f"worker {number}", "worker", address, "--nthreads", "1", "--no-nanny", "--no-dashboard")
        self._driver = ("driver", "run", run.settings, "--on", address)
        self.start(*self._driver)

    def _max_failed(self) -> int:
        return super()._max_failed() + MAX_FAILED_PER_EVENT * self._kills["scheduler"]

    def _after(self, program: Program, code: int) -> None:
        is_driver = program.name == "driver"
        if is_driver and (self.is_sealed() or (code == 75 and self._runs("driver"))):
            return
        self.start_again(program)

    def _start_twice(self, program: Program) -> None:
        self.start(*self._driver)

    def _is_done(self) -> bool:
        return not self._runs("driver") and self.is_sealed()
