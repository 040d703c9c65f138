"""Audits in separate processes, killed at random moments, against a platform that counts its responses."""

import contextlib
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import jsonschema
import orjson

import auditor
from auditor.client.operations import (
    DISCOVERY_OPERATIONS,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    QUERY_DEVICE,
    RELEASE_OPERATIONS,
)
from auditor.engine.account_session import RESERVED_REQUESTS
from auditor.releases.list_journal import RELEASES_FOLDER
from auditor.runs.folder import FAILURES, RESULTS, SEALED, results_name
from auditor.runs.journal import result_blocks
from auditor.runs.locking import STARTING_PREFIX
from auditor.runs.manifest import MANIFEST, Manifest, read_manifest
from auditor.simulator.server import DEFAULT_ACCOUNT
from auditor.simulator.world import FLEET_COLUMNS, World
from tests.chaos.counting import PlatformThread, run_platform
from tests.chaos.figures import Figures, Phase
from tests.integration.test_audit import assert_matches, read_lines
from tests.releases.released import assert_released

CONCURRENCY = 32
RELEASED_SHARE = 0.5
"""Share of the audits that read released firmware, too."""
MAX_EARLY_SECONDS = 1.6
"""Seconds until an early kill: while the interpreter starts, the folder is created, or a run is repaired."""
MAX_SETUP_SECONDS = 0.1
"""Seconds until a kill after a process starts to create its run folder."""
MAX_HOOKS_SECONDS = 0.2
"""Seconds until a kill after a run is complete, and its metrics are still to be written."""
MAX_REMEMBERING_SECONDS = 0.005
"""Seconds until a kill after a process starts to write the settings that a resume uses."""
MAX_RELEASES_SECONDS = 0.05
"""Seconds until a kill after a process has read a page of released firmware."""
MAX_SEALING_SECONDS = 0.4
"""Seconds until a kill after a process starts to seal."""
COMMAND_INTERVAL = 10
"""After one in so many kills the run is read by the command too, not only from Python."""

Kind = Literal["early", "remembering", "discovery", "querying", "releases", "sealing", "hooks"]
RUN_SCHEMA = orjson.loads(resources.files("auditor").joinpath("schemas", "run.schema.json").read_bytes())


class KilledAudit:
    """One audit of a world: started, killed, resumed, and finally finished.

    Args:
        folder: an empty one.
        world: its devices.
        platform: answers for them.
        rng: determines when kills occur.
        figures: the results are added to it.

    Attributes:
        released: whether it reads released firmware, too.
    """

    def __init__(
        self, folder: Path, world: World, platform: PlatformThread, rng: random.Random, figures: Figures
    ) -> None:
        self._world, self._platform, self._rng, self._figures = world, platform, rng, figures
        self._directory = folder / "audits"
        self._output, self._metrics, self._state = folder / "output.txt", folder / "chaos.prom", folder / "state"
        self.released = rng.random() < RELEASED_SHARE
        self._settings, self._discovered = write_settings(folder, world, platform.endpoint, rng, released=self.released)
        self._devices = [device for device in world if device.exists or not self._discovered]
        self._unnamed = {
            device.iot_id for device in world if not (device.exists and device.activated and device.modules)
        }
        self._written = b""
        self._in_flight = self._kills = 0

    @property
    def run(self) -> Path | None:
        """The run folder, if there is one; there is never a second one."""
        try:
            runs = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return None
        assert len(runs) <= 1, f"an unfinished run was not resumed: {sorted(runs)}"
        return runs[0] if runs else None

    def kill(self, kind: Kind) -> bool:
        """Start a process and kill it; return False if it, and so the audit, finished before."""
        before, resumed = self._platform.response_counts(), self._resume_count()
        received, remembered = self._platform.received, self._remembered()
        process = self._start(by_name=kind == "remembering")
        match kind:
            case "early":
                self._wait_random_time(process)
            case "remembering":
                wait_until(lambda: self._remembered() != remembered, process)
                time.sleep(self._rng.uniform(0, MAX_REMEMBERING_SECONDS))
            case "discovery":
                self._wait_for_pages(process)
            case "querying":
                self._wait_for_responses(process)
            case "releases":
                read = self._released_bytes()
                wait_until(lambda: self._released_bytes() > read, process)
                time.sleep(self._rng.uniform(0, MAX_RELEASES_SECONDS))
            case "sealing":
                self._wait_for_sealing(process)
            case "hooks":
                wait_until(self._is_complete, process)
                time.sleep(self._rng.uniform(0, MAX_HOOKS_SECONDS))
        process.kill()
        if process.wait() >= 0:
            assert process.returncode == 0, self._output.read_text()
            self._figures.finished_early += 1
            return False
        self._platform.wait_until_idle()
        self._kills += 1
        half_written = {name for name, _ in self._remembered() - remembered if not name.endswith(".json")}
        self._figures.kills["remembering settings" if half_written else self._phase(resumed, received)] += 1
        self._check_files(before)
        return True

    def finish(self) -> None:
        """Finish the audit, and compare the run with the world."""
        process = self._start()
        assert process.wait(120) == 0, self._output.read_text()
        run = self.run
        assert run is not None
        manifest = check_manifest(run)
        problems = auditor.verify_run(run)
        assert (manifest.state, manifest.devices.unanswered, problems) == ("complete", 0, []), (manifest, problems)
        self._check_lines(run)
        assert_matches(self._devices, run)
        assert [each.problems for each in manifest.releases] == [()] * self.released
        if self.released:
            assert_released(self._world, run)
        assert [path.name for path in self._directory.iterdir()] == [run.name]
        assert [path.name for path in run.iterdir() if path.name.startswith(".") or path.suffix == ".new"] == []
        assert 'state="complete"} 1' in self._metrics.read_text(), "the hooks did not run"
        self._count(run)
        self._count_requests(manifest)

    def _count_requests(self, manifest: Manifest) -> None:
        """Check that the run counts every request that arrived, and few more."""
        arrived = self._platform.arrival_counts()
        listed = sum(discovery.requests.sent for discovery in manifest.discovery)
        for sent, operations in (
            (manifest.requests.sent, (LIST_OTA_MODULE_VERSIONS_BY_DEVICE,)),
            (listed, DISCOVERY_OPERATIONS[:2]),  # deep pages are of the same operation
            (sum(each.requests for each in manifest.releases), RELEASE_OPERATIONS),
        ):
            received = sum(arrived[operation.name] for operation in operations)
            assert received <= sent <= received + self._kills * (CONCURRENCY + RESERVED_REQUESTS), (sent, received)
            self._figures.sent_too_many += sent - received

    def _count(self, run: Path) -> None:
        responses, figures = self._platform.response_counts(), self._figures
        lines = [line["iot_id"] for line in read_lines(run / RESULTS)]
        figures.audits += 1
        figures.devices += len(self._devices)
        figures.responses += responses.total()
        figures.lost += len({device.iot_id for device in self._devices} - set(lines))
        figures.duplicate_lines += len(lines) - len(set(lines))
        queried_twice = responses.total() - len(responses)
        assert queried_twice <= self._in_flight, f"{queried_twice} queried twice, and {self._in_flight} in flight"
        figures.queried_twice += queried_twice
        figures.in_flight += self._in_flight

    def _start(self, *, by_name: bool = False) -> subprocess.Popen[bytes]:
        run = self.run
        # By its name, a new run would be started after a complete one. By its folder, no settings are remembered.
        by_folder = run is not None and not by_name and (self._is_complete() or self._rng.random() < 0.5)
        arguments = ["resume", run] if by_folder else ["run", self._settings, "--resume", "--out", self._directory]
        with self._output.open("ab") as output:
            environment = {**os.environ, "XDG_STATE_HOME": str(self._state)}
            return subprocess.Popen(
                command(*arguments), env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    def _wait_random_time(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for a fraction of the start, or until the folder is being created, and a moment more."""
        if self.run is None and self._rng.random() < 0.5:
            wait_until(lambda: any(self._directory.glob(f"{STARTING_PREFIX}*")), process)
            time.sleep(self._rng.uniform(0, MAX_SETUP_SECONDS))
        else:
            time.sleep(self._rng.uniform(0, MAX_EARLY_SECONDS))

    def _wait_for_pages(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the platform has listed some pages of the fleet; without a discovery, for a random time."""
        if not self._discovered:
            self._wait_random_time(process)
            return
        pages = len(self._devices) // QUERY_DEVICE.page_size
        enough = self._platform.received + self._rng.randint(1, max(1, pages))
        wait_until(lambda: self._platform.received >= enough, process)

    def _wait_for_responses(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until some of the remaining devices were queried, and a moment more."""
        remaining = len(self._devices) - self._written.count(b"\n")
        enough = self._platform.received + self._rng.randint(1, max(1, remaining // 2))
        wait_until(lambda: self._platform.received >= enough, process)
        time.sleep(self._rng.uniform(0, 0.02))

    def _wait_for_sealing(self, process: subprocess.Popen[bytes]) -> None:
        """Wait until the process seals, and a moment more; files of an earlier sealing are removed before."""
        wait_until(lambda: not self._is_sealing(), process)
        wait_until(self._is_sealing, process)
        time.sleep(self._rng.uniform(0, MAX_SEALING_SECONDS))

    def _is_sealing(self) -> bool:
        run = self.run
        return run is not None and ((run / ".sealing").exists() or any(run.glob(".verifying-*")))

    def _released_bytes(self) -> int:
        """Bytes of the pages of released firmware that were read."""
        run, size = self.run, 0
        for path in () if run is None else (run / RELEASES_FOLDER).glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                size += path.stat().st_size
        return size

    def _is_complete(self) -> bool:
        """Whether the run is complete, so that only its hooks remain."""
        run = self.run
        return run is not None and read_manifest(run).state == "complete"

    def _remembered(self) -> set[tuple[str, int]]:
        """Names and times of the files in which the settings are remembered."""
        found = set()
        for path in self._state.glob("auditor/settings/*"):
            with contextlib.suppress(FileNotFoundError):
                found.add((path.name, path.stat().st_mtime_ns))
        return found

    def _resume_count(self) -> int | None:
        """Number of resumes of the run; None before there is one."""
        run = self.run
        return None if run is None else len(read_manifest(run).resumed_at)

    def _phase(self, resumed: int | None, received: int) -> Phase:
        """Phase of the process, by its manifest, by files that are newer, and by its requests."""
        run = self.run
        if run is None:
            return "making the folder" if any(self._directory.glob(f"{STARTING_PREFIX}*")) else "before the folder"
        manifest = read_manifest(run)
        if manifest.state == "complete":
            return "hooks"
        if len(manifest.resumed_at) == resumed:
            return "resuming"
        written = (run / MANIFEST).stat().st_mtime_ns
        newer = [path for name in (*SEALED, ".sealing", ".verifying-*") for path in run.glob(name)]
        if manifest.state != "running" or any(path.stat().st_ctime_ns > written for path in newer):
            return "sealing or verifying"
        if any(each.state == "pending" for each in manifest.discovery):
            return "discovery"
        reading: Phase = "released firmware" if (run / RELEASES_FOLDER).exists() else "querying"
        return reading if resumed is None or self._platform.received > received else "resuming"

    def _check_files(self, before: Counter[str]) -> None:
        """Check that a killed run is readable, keeps its results, and lacks at most the responses in flight."""
        run, responses = self.run, self._platform.response_counts()
        written: set[str] = set()
        if run is not None:
            check_manifest(run)
            lines = self._check_lines(run)
            written = {line["iot_id"] for line in lines}
            self._check_readable(run, lines)
        answered = {device for device in responses if responses[device] > before[device]}
        in_flight = len(answered - written)
        # Answers that name no device are held back for a moment, in which other requests are sent.
        unwritten = len(answered - written - self._unnamed)
        assert unwritten <= CONCURRENCY, (
            f"{unwritten} responses are not written, and at most {CONCURRENCY} were in flight"
        )
        self._in_flight += in_flight
        self._figures.max_in_flight = max(self._figures.max_in_flight, in_flight)

    def _check_readable(self, run: Path, lines: list[dict[str, Any]]) -> None:
        """Check that the inventory is that of exactly the complete lines of the run."""
        expected: Counter[tuple[str, str, str]] = Counter()
        for line in lines:
            expected.update((line["product_key"], *each.values()) for each in line["modules"])
        try:
            with auditor.Run(run) as opened:
                found = {(v.product_key, v.module_name, v.module_version): v.devices for v in opened.inventory()}
                counts = opened.devices
        except auditor.AuditorError as error:
            self._figures.unreadable.append(str(error))
            return
        assert found == expected, "the inventory differs from the lines"
        assert counts.ok + counts.empty + counts.not_found == len(lines)
        if self._figures.kills.total() % COMMAND_INTERVAL == 0:
            read = subprocess.run(command("inventory", self._directory), capture_output=True, check=False)
            assert read.returncode == 0, read.stderr

    def _check_lines(self, run: Path) -> list[dict[str, Any]]:
        """Return the written results, after checking that earlier ones are unchanged and no device has two."""
        content = b"".join(result_blocks(run / results_name(run)))
        complete = content[: content.rfind(b"\n") + 1]
        assert complete.startswith(self._written), "written lines are missing"
        self._written = complete
        lines: list[dict[str, Any]] = [orjson.loads(line) for line in complete.splitlines()]
        duplicates = Counter(line["iot_id"] for line in lines) - Counter({line["iot_id"]: 1 for line in lines})
        assert not duplicates, f"devices with two lines: {duplicates}"
        failures = (run / FAILURES).read_bytes()
        assert all(orjson.loads(line) for line in failures[: failures.rfind(b"\n") + 1].splitlines())
        return lines


def write_settings(
    folder: Path, world: World, endpoint: str, rng: random.Random, *, released: bool
) -> tuple[Path, bool]:
    """Write settings, secret and fleet file; return the settings, and whether the fleet is discovered.

    A file names its devices by all columns or by ``iot_id`` alone.
    """
    columns, discovered = rng.choice([(FLEET_COLUMNS, False), (("iot_id",), False), (FLEET_COLUMNS, True)])
    fleet = 'products = "all"' if discovered else 'file = "fleet.csv"'
    folder.mkdir(parents=True)
    world.write_fleet(folder / "fleet.csv", columns=columns)
    (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    settings = folder / "settings.toml"
    settings.write_text(
        f'name = "chaos"\nconcurrency = {CONCURRENCY}\ntimeout = 10.0\n'
        f'released = {str(released).lower()}\nmax_job_age = "9999d"\n[[account]]\nname = "eu"\n'
        f'endpoint = "{endpoint}"\naccess_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\n'
        f'access_key_secret = {{ file = "secret" }}\ncalls_per_second = "unlimited"\nfleet = {{ {fleet} }}\n'
        f'[report]\nmetrics = "{folder / "chaos.prom"}"\n'
    )
    return settings, discovered


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "auditor", *map(str, arguments)]


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until the condition is true or the process has ended."""
    until = time.monotonic() + 120
    while not condition() and process.poll() is None:
        assert time.monotonic() < until, "the condition did not become true"
        time.sleep(0.001)


def check_manifest(run: Path) -> Manifest:
    """Return the manifest, after checking it against its schema."""
    jsonschema.validate(orjson.loads((run / MANIFEST).read_bytes()), RUN_SCHEMA)
    return read_manifest(run)


def plan_kills(rng: random.Random, *, released: bool) -> list[Kind]:
    """Kills of one audit: while it starts, lists its fleet, queries, reads releases and seals, and before its hooks."""
    early: list[Kind] = ["early"]
    querying: list[Kind] = ["querying"]
    sealing: list[Kind] = ["sealing"]
    remembering: list[Kind] = ["remembering"]
    discovery: list[Kind] = ["discovery"]
    releases: list[Kind] = ["releases"]
    hooks: list[Kind] = ["hooks"]
    begin = early * rng.randint(1, 2) + remembering * rng.randint(0, 2) + discovery * rng.randint(0, 2)
    middle = querying * rng.randint(1, 4) + early * rng.randint(0, 2)
    end = sealing * rng.randint(1, 3) + early * rng.randint(0, 1)
    rng.shuffle(begin)
    rng.shuffle(middle)
    rng.shuffle(end)
    return begin + middle + releases * (released and rng.randint(1, 2)) + end + hooks


def run_killed_audits(folder: Path, *, kills: int, devices: int, seed: int) -> Figures:
    """Audit one world after another until so many processes were killed; every audit finishes with all results."""
    rng, figures = random.Random(seed), Figures()
    while figures.kills.total() < kills:
        number = figures.audits
        world = World(devices, seed=rng.getrandbits(32), day=rng.randint(0, 5))
        with run_platform(world, rng.getrandbits(32)) as platform:
            audit = KilledAudit(folder / str(number), world, platform, rng, figures)
            for kind in plan_kills(rng, released=audit.released)[: kills - figures.kills.total()]:
                if not audit.kill(kind):
                    break
            audit.finish()
    return figures
