"""Valid runs, settings and fleets to mutate, each made once, and the platform and the Redis that they use."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Self
from unittest.mock import patch

import anyio

from auditor.models import Secret
from auditor.releases.collector import ReleaseCollector
from auditor.runs.folder import SEALED
from auditor.runs.manifest import DeviceCounts, read_manifest, write_manifest
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.mutations.sandbox import ENVIRONMENT, Sandbox
from tests.resilience.redis_server import RedisServer

WORLD = World(14, seed=3, missing=0.1, silent=0.1, inactive=0.05, large=0, day=5)

RULES = Path(__file__).parents[2] / "configs" / "rules.toml"

SECOND_ACCOUNT = SimulatedAccount(ENVIRONMENT["AUDITOR_TEST_KEY"], Secret(ENVIRONMENT["AUDITOR_TEST_SECRET"]))

HEAD = """\
name = "nightly"
directory = "audits"
max_attempts = 2
timeout = 5
connect_timeout = 5
give_up_after = 5
max_failed = "50%"
quota_sharing = "none"
"""

Start = Callable[[list[str]], int]


class Material:
    """What mutations start from. Use it as a context manager: it ends the processes that it starts.

    Attributes:
        valid_values, valid_files: shared quotas of an audit, by key in Redis and by name of the file.
    """

    def __init__(self, work: Path, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        self._templates = work / "templates"
        self._port = 0
        self._process = 0
        self._redis: RedisServer | None = None
        self._redis_folder = work / "redis"
        self.valid_values: dict[str, bytes] = {}
        self.valid_files: dict[str, bytes] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            os.kill(self._process, signal.SIGKILL)
            os.waitpid(self._process, 0)
        if self._redis is not None:
            self._redis.kill()

    @property
    def port(self) -> int:
        """The port of the simulated platform, which is started when it is first needed."""
        if not self._port:
            reading, writing = os.pipe()
            if (child := os.fork()) == 0:
                os.close(reading)
                try:
                    anyio.run(_serve, writing, os.getppid())
                finally:
                    os._exit(1)
            os.close(writing)
            with os.fdopen(reading) as pipe_end:
                self._port, self._process = int(pipe_end.read()), child
        return self._port

    @property
    def redis(self) -> RedisServer:
        """A Redis server, which is started when it is first needed."""
        if self._redis is None:
            self._redis_folder.mkdir(parents=True, exist_ok=True)
            self._redis = RedisServer(self._redis_folder)
        return self._redis

    def write_settings(self, folder: Path, *, port: int | None = None, head: str = HEAD) -> None:
        """Write settings of a fleet file, of a listed fleet and with released firmware, and what they need."""
        secret = folder / "secret"
        secret.write_text(DEFAULT_ACCOUNT.secret.reveal())
        WORLD.write_fleet(folder / "fleet.csv")
        shutil.copy(RULES, folder / "rules.toml")
        account = (
            f'\n[[account]]\nname = "eu"\nendpoint = "http://127.0.0.1:{port or self.port}/"\ncalls_per_second = "unlimited"\n'
            f'access_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\naccess_key_secret = {{ file = "secret" }}\n'
        )
        (folder / "file.toml").write_text(head + account + 'fleet = { file = "fleet.csv" }\n')
        (folder / "listed.toml").write_text(head + account + 'fleet = { products = "all" }\n')
        released = head + 'released = true\nmax_job_age = "9999d"\n'
        (folder / "released.toml").write_text(released + account + 'fleet = { file = "fleet.csv" }\n')

    def fill(self, name: str) -> Path:
        """Fill the sandbox with a copy of one of ``TEMPLATES``; return its directory of runs."""
        template = self._templates / name
        if not template.exists():
            self.sandbox.reset()
            self.write_settings(self.sandbox.folder)
            make = TEMPLATES[name]
            self.sandbox.call(lambda: make(self.sandbox.folder, _run_command))
            template.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.sandbox.folder, template)
        shutil.rmtree(self.sandbox.folder)
        self.sandbox.reset()
        shutil.copytree(template, self.sandbox.folder, dirs_exist_ok=True)
        return self.sandbox.folder / "audits"


async def _serve(report: int, parent: int) -> None:
    async with Simulator(WORLD, accounts=(DEFAULT_ACCOUNT, SECOND_ACCOUNT)) as platform:
        os.write(report, str(platform.port).encode())
        os.close(report)
        while os.getppid() == parent:  # noqa: ASYNC110  else it was killed, of which no event comes
            await anyio.sleep(1)


def _run_command(arguments: list[str]) -> int:
    from auditor.cli.app import main

    with _silenced():
        code = main(arguments)
    assert code in {0, 1}, (arguments, code)
    return code


@contextmanager
def _silenced() -> Iterator[None]:
    """Discard what a command prints, in a process of its own."""
    kept, null = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(null, number)
    try:
        yield
    finally:
        for number, descriptor in enumerate(kept, 1):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(null)


def _full(folder: Path, command: Start) -> None:
    for _ in range(2):
        command(["run", str(folder / "file.toml")])


def _listed(folder: Path, command: Start) -> None:
    for _ in range(2):
        command(["run", str(folder / "listed.toml")])


def _incremental(folder: Path, command: Start) -> None:
    for _ in range(3):
        command(["run", str(folder / "listed.toml"), "--since", "last", "--recheck", "30%"])


def _sampled(folder: Path, command: Start) -> None:
    for seed in ("1", "2"):
        command(["run", str(folder / "listed.toml"), "--sample", "8", "--seed", seed])


def _killed(folder: Path, command: Start) -> None:
    """Make a run as a kill leaves it, after a finished one."""
    _full(folder, command)
    _unseal(folder)


def _released(folder: Path, command: Start) -> None:
    for _ in range(2):
        command(["run", str(folder / "released.toml")])


def _released_killed(folder: Path, command: Start) -> None:
    """Make a run as a kill leaves it that came after its released firmware was read, after a finished one."""
    with patch.object(ReleaseCollector, "cleanup"):
        _released(folder, command)
    _unseal(folder)


def _unseal(folder: Path) -> None:
    run = max((folder / "audits").glob("2*"))
    for name in SEALED:
        (run / name).unlink()
    lines = (run / "devices.jsonl").read_bytes()
    os.truncate(run / "devices.jsonl", len(lines) * 2 // 3)
    manifest = read_manifest(run)
    counts = DeviceCounts(pending=manifest.fleet.devices)
    write_manifest(run, replace(manifest, state="running", finished_at=None, files=(), devices=counts))


TEMPLATES: dict[str, Callable[[Path, Start], None]] = {
    "full": _full, "listed": _listed, "incremental": _incremental, "sampled": _sampled, "killed": _killed,
    "released": _released, "released-killed": _released_killed,
}  # fmt: skip
