"""An audit in processes of their own, killed at random moments, against a platform that counts what it answers."""

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
from auditor.audit.device_source import LISTINGS
from auditor.runs.folder import ANSWERED, FAILED, SEALED
from auditor.runs.locking import BEGINNING
from auditor.runs.manifest import MANIFEST, Manifest, read_manifest
from auditor.runs.recovery import LEFT_OVERS
from auditor.simulator.server import DEFAULT_ACCOUNT
from auditor.simulator.world import FLEET_COLUMNS, World
from tests.chaos.counting import Platform, platform_for
from tests.chaos.figures import Figures, Phase
from tests.integration.test_audit import assert_true_to, lines_of

AT_ONCE = 32
EARLY_SECONDS = 1.6
"""An early kill comes within this time: while the interpreter starts, the folder is made, or a run is mended."""
MAKING_SECONDS = 0.1
"""A kill of a process that makes its run folder comes within this time after it began to."""
SEALING_SECONDS = 0.4
"""A kill of a process that seals comes within this time after it began to."""
COMMAND_EACH = 10
"""After one of so many kills the run is read by the command as well, not only from Python."""

Kind = Literal["early", "asking", "sealing"]
RUN_SCHEMA = orjson.loads(resources.files("auditor").joinpath("schemas", "run.schema.json").read_bytes())


class Audit:
    """One audit of a world: begun, killed, gone on with, and in the end left alone.

    Args:
        folder: an empty one of its own.
        world: the devices.
        platform: which answers about them.
        chance: what decides when kills come.
        figures: added to.
    """

    def __init__(self, folder: Path, world: World, platform: Platform, chance: random.Random, figures: Figures) -> None:
        self._world, self._platform, self._chance, self._figures = world, platform, chance, figures
        self._directory = folder / "audits"
        self._told = folder / "told.txt"
        self._settings, listed = write_settings(folder, world, platform.endpoint, chance)
        self._devices = [device for device in world if device.exists or not listed]
        self._written = b""
        self._in_flight = 0

    @property
    def run(self) -> Path | None:
        """The run folder, if there is one; there is never a second."""
        try:
            runs = [path for path in self._directory.iterdir() if not path.name.startswith(".")]
        except FileNotFoundError:
            return None
        assert len(runs) <= 1, f"an unfinished run was not gone on with: {sorted(runs)}"
        return runs[0] if runs else None

    def kill(self, kind: Kind) -> bool:
        """Starts a process and kills it; False if it was done before, and so the audit is."""
        before, resumed = self._platform.answers(), self._resumed()
        received = self._platform.received
        process = self._start()
        {"early": self._wait_a_while, "asking": self._wait_for_answers, "sealing": self._wait_for_the_seal}[kind](
            process
        )
        process.kill()
        if process.wait() >= 0:
            assert process.returncode == 0, self._told.read_text()
            self._figures.unhurt += 1
            return False
        self._platform.settle()
        self._figures.kills[self._phase(resumed, received)] += 1
        self._check_what_is_left(before)
        return True

    def leave_alone(self) -> None:
        """Goes on to the end, and compares what there is with the truth."""
        process = self._start()
        assert process.wait(120) == 0, self._told.read_text()
        run = self.run
        assert run is not None
        manifest = check_manifest(run)
        problems = auditor.verify(run)
        assert (manifest.state, manifest.devices.unanswered, problems) == ("complete", 0, []), (manifest, problems)
        self._check_lines(run)
        assert_true_to(self._devices, run)
        assert [path.name for path in self._directory.iterdir()] == [run.name]
        assert [path.name for pattern in (*LEFT_OVERS, LISTINGS) for path in run.glob(pattern)] == []
        self._count(run)

    def _count(self, run: Path) -> None:
        answers, figures = self._platform.answers(), self._figures
        lines = [line["iot_id"] for line in lines_of(run / ANSWERED)]
        figures.audits += 1
        figures.devices += len(self._devices)
        figures.answers += answers.total()
        figures.lost += len({device.iot_id for device in self._devices} - set(lines))
        figures.written_twice += len(lines) - len(set(lines))
        asked_twice = answers.total() - len(answers)
        assert asked_twice <= self._in_flight, f"{asked_twice} asked twice, and {self._in_flight} in flight"
        figures.asked_twice += asked_twice
        figures.in_flight += self._in_flight

    def _start(self) -> subprocess.Popen[bytes]:
        run = self.run
        by_name = ["run", self._settings, "--resume", "--out", self._directory]
        # One that is complete would, by its name, rightly be followed by a new one.
        by_folder = run is not None and (read_manifest(run).state == "complete" or self._chance.random() < 0.5)
        arguments = ["resume", run] if by_folder else by_name
        with self._told.open("ab") as told:
            return subprocess.Popen(command(*arguments), stdin=subprocess.DEVNULL, stdout=told, stderr=told)

    def _wait_a_while(self, process: subprocess.Popen[bytes]) -> None:
        """A part of the start, or until the folder is being made, and a moment more."""
        if self.run is None and self._chance.random() < 0.5:
            wait_until(lambda: any(self._directory.glob(f"{BEGINNING}*")), process)
            time.sleep(self._chance.uniform(0, MAKING_SECONDS))
        else:
            time.sleep(self._chance.uniform(0, EARLY_SECONDS))

    def _wait_for_answers(self, process: subprocess.Popen[bytes]) -> None:
        """Until a part of what is left was asked, and a moment more."""
        left = len(self._devices) - self._written.count(b"\n")
        enough = self._platform.received + self._chance.randint(1, max(1, left // 2))
        wait_until(lambda: self._platform.received >= enough, process)
        time.sleep(self._chance.uniform(0, 0.02))

    def _wait_for_the_seal(self, process: subprocess.Popen[bytes]) -> None:
        """Until it seals, and a moment more; what an earlier process left of its own sealing is gone by then."""
        wait_until(lambda: not self._seals(), process)
        wait_until(self._seals, process)
        time.sleep(self._chance.uniform(0, SEALING_SECONDS))

    def _seals(self) -> bool:
        run = self.run
        return run is not None and ((run / ".sealing").exists() or any(run.glob(".verifying-*")))

    def _resumed(self) -> int | None:
        """How often the run was gone on with; None before there is one."""
        run = self.run
        return None if run is None else len(read_manifest(run).resumed_at)

    def _phase(self, resumed: int | None, received: int) -> Phase:
        """What the process was at: its manifest, what is newer than that, and its requests tell."""
        run = self.run
        if run is None:
            return "making the folder" if any(self._directory.glob(f"{BEGINNING}*")) else "before the folder"
        manifest = read_manifest(run)
        if len(manifest.resumed_at) == resumed:
            return "resuming"
        written = (run / MANIFEST).stat().st_mtime_ns
        signs = [path for name in (*SEALED, ".sealing", ".verifying-*") for path in run.glob(name)]
        if manifest.state != "running" or any(path.stat().st_ctime_ns > written for path in signs):
            return "sealing or proving"
        if any(listing.state == "pending" for listing in manifest.listings):
            return "listing"
        return "asking" if resumed is None or self._platform.received > received else "resuming"

    def _check_what_is_left(self, before: Counter[str]) -> None:
        """A killed run is readable, keeps all that it had, and lacks no more answers than were in flight."""
        run, answers = self.run, self._platform.answers()
        written: set[str] = set()
        if run is not None:
            check_manifest(run)
            lines = self._check_lines(run)
            written = {line["iot_id"] for line in lines}
            self._check_readable(run, lines)
        given = {device for device in answers if answers[device] > before[device]}
        in_flight = len(given - written)
        assert in_flight <= AT_ONCE, f"{in_flight} answers are not written, and {AT_ONCE} can have been in flight"
        self._in_flight += in_flight
        self._figures.most_in_flight = max(self._figures.most_in_flight, in_flight)

    def _check_readable(self, run: Path, lines: list[dict[str, Any]]) -> None:
        """Whoever reads the run now gets the inventory of exactly the whole lines in it."""
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
        assert found == expected, "the inventory is not that of the lines"
        assert counts.ok + counts.empty + counts.not_found == len(lines)
        if self._figures.kills.total() % COMMAND_EACH == 0:
            read = subprocess.run(command("inventory", self._directory), capture_output=True, check=False)
            assert read.returncode == 0, read.stderr

    def _check_lines(self, run: Path) -> list[dict[str, Any]]:
        """The answers that are written: those of before stand as they were, and no device has two."""
        content = (run / ANSWERED).read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        assert whole.startswith(self._written), "lines that were written are gone"
        self._written = whole
        lines: list[dict[str, Any]] = [orjson.loads(line) for line in whole.splitlines()]
        twice = Counter(line["iot_id"] for line in lines) - Counter({line["iot_id"]: 1 for line in lines})
        assert not twice, f"devices are written twice: {twice}"
        failures = (run / FAILED).read_bytes()
        assert all(orjson.loads(line) for line in failures[: failures.rfind(b"\n") + 1].splitlines())
        return lines


def write_settings(folder: Path, world: World, endpoint: str, chance: random.Random) -> tuple[Path, bool]:
    """Settings, secret and fleet file; and whether it is the platform that lists the fleet.

    A file names its devices in all ways or by ``iot_id`` alone.
    """
    columns, listed = chance.choice([(FLEET_COLUMNS, False), (("iot_id",), False), (FLEET_COLUMNS, True)])
    fleet = 'products = "all"' if listed else 'file = "fleet.csv"'
    folder.mkdir(parents=True)
    world.write_fleet(folder / "fleet.csv", columns=columns)
    (folder / "secret").write_text(DEFAULT_ACCOUNT.secret.reveal())
    settings = folder / "settings.toml"
    settings.write_text(
        f'name = "chaos"\nat_once = {AT_ONCE}\ntimeout = 10.0\n[[account]]\nname = "eu"\n'
        f'endpoint = "{endpoint}"\naccess_key_id = "{DEFAULT_ACCOUNT.access_key_id}"\n'
        f'access_key_secret = {{ file = "secret" }}\nper_second = "unlimited"\nfleet = {{ {fleet} }}\n'
    )
    return settings, listed


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "auditor", *map(str, arguments)]


def wait_until(happened: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Returns when it has, or when the process has ended."""
    until = time.monotonic() + 120
    while not happened() and process.poll() is None:
        assert time.monotonic() < until, "nothing happens"
        time.sleep(0.001)


def check_manifest(run: Path) -> Manifest:
    """The manifest, which is whole and fits its schema whenever it is read."""
    jsonschema.validate(orjson.loads((run / MANIFEST).read_bytes()), RUN_SCHEMA)
    return read_manifest(run)


def plan(chance: random.Random) -> list[Kind]:
    """The kills of one audit: while it starts, then while it asks, then, with nothing left to ask, while it seals."""
    early: list[Kind] = ["early"]
    asking: list[Kind] = ["asking"]
    sealing: list[Kind] = ["sealing"]
    middle = asking * chance.randint(1, 4) + early * chance.randint(0, 2)
    end = sealing * chance.randint(1, 3) + early * chance.randint(0, 1)
    chance.shuffle(middle)
    chance.shuffle(end)
    return early * chance.randint(1, 3) + middle + end


def audit_under_fire(folder: Path, *, kills: int, devices: int, seed: int) -> Figures:
    """Audits one world after another until so many processes were killed; each audit ends in the whole truth."""
    chance, figures = random.Random(seed), Figures()
    while figures.kills.total() < kills:
        number = figures.audits
        world = World(devices, seed=chance.getrandbits(32))
        with platform_for(world, chance.getrandbits(32)) as platform:
            audit = Audit(folder / str(number), world, platform, chance, figures)
            for kind in plan(chance)[: kills - figures.kills.total()]:
                if not audit.kill(kind):
                    break
            audit.leave_alone()
    return figures
