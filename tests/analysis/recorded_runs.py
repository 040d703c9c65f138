"""Directories of runs that recorded their changes."""

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from msgspec import structs

from auditor.analysis.recorded_changes import record_changes
from auditor.models import Outcome
from auditor.runs.manifest import AccountInfo, DiscoveryInfo, read_manifest, write_manifest
from tests.runs.run_folders import both, build, edit_manifest, failed, named, not_found, ok

Modules = dict[str, str]
Answer = Modules | str
"""A device in a run: its modules, or ``failed``, ``not_found``, ``absent``, or ``unlisted`` by an incomplete list."""


def outcome(number: int, answer: Answer, *, shared: bool = False) -> Outcome:
    device = named(number) if shared else both(number)
    if isinstance(answer, dict):
        return ok(device, *answer.items(), learnt=structs.replace(device, iot_id="shared") if shared else None)
    return failed(device) if answer == "failed" else not_found(device)


def add_run(
    directory: Path,
    day: int,
    answers: Sequence[Answer],
    *,
    shared: bool = False,
    discovery: tuple[DiscoveryInfo, ...] = (),
) -> Path:
    """Write a sealed run of the devices that are not absent, and let it record its changes.

    ``shared``: the fleet names devices by their names, and all that answer report one ``iot_id``. ``discovery``: how its
    devices were listed; incompletely if one is ``unlisted``.
    """
    present = [(number, answer) for number, answer in enumerate(answers) if answer not in ("absent", "unlisted")]
    discovery = (DiscoveryInfo("demo"),) if "unlisted" in answers else discovery
    outcomes = [outcome(number, answer, shared=shared) for number, answer in present]
    folder = directory / f"202611{day:02}T020000Z-nightly"
    build(folder, [named(number) if shared else both(number) for number, _ in present], outcomes)
    started_at = f"2026-11-{day:02}T02:00:00.000Z"
    accounts = (AccountInfo("demo", "https://example.com/", "tuya", 10),)
    edit_manifest(
        folder, lambda manifest: replace(manifest, started_at=started_at, discovery=discovery, accounts=accounts)
    )
    write_manifest(folder, record_changes(folder, read_manifest(folder)))
    return folder


DAYS: list[list[Answer]] = [
    [{"ble": "1.0"}, {"ble": "1.0"}, {"ble": "1.0"}, {"ble": "1.0"}],
    [{"ble": "1.1"}, {"ble": "1.0"}, "failed", {"ble": "1.0"}],
    [{"ble": "1.0"}, {"ble": "1.0"}, "failed", "absent"],
    [{"ble": "1.1"}, {"ble": "1.2"}, {"ble": "1.1"}, "absent"],
]


@cache
def _built() -> Path:
    directory = Path(tempfile.mkdtemp(prefix="auditor-days-"), "audits")
    for day, answers in enumerate(DAYS, 22):
        add_run(directory, day, answers)
    return directory


def write_days(directory: Path) -> Path:
    """Write the runs of ``DAYS``, 2026-11-22 to 2026-11-25, to a new directory, and return it."""
    shutil.copytree(_built(), directory)
    return directory
