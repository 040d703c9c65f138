"""Changes that runs record equal those of an oracle in plain Python, and what is read from them equals it too."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import structs

from auditor.analysis.device_selection import NET_CHANGES
from auditor.analysis.device_timeline import read_timeline
from auditor.analysis.drift import latest_pair
from auditor.analysis.net_changes import read_changes_since
from auditor.analysis.recorded_changes import record_changes
from auditor.errors import RunFolderError, UsageError
from auditor.query.filters import DeviceFilter
from auditor.runs.folder import ARCHIVE, CHANGES, DEVICES
from auditor.runs.manifest import DiscoveryInfo, SilentAccount, read_manifest, write_manifest
from auditor.runs.retention import prune_runs
from auditor.runs.verify import verify_run
from tests.analysis.recorded_runs import DAYS, Answer, Modules, add_run, write_days
from tests.database import connect
from tests.runs.run_folders import both, build, edit_manifest, ok

Row = tuple[str, str | None, str, str | None, str | None]
"""Device, module, change, old and new version."""

ORDER = {"1.0": 0, "1.1": 1, "1.2": 2}


def compare(old: str, new: str) -> str:
    if old in ORDER and new in ORDER:
        return "upgraded" if ORDER[new] > ORDER[old] else "downgraded"
    return "changed"


def module_rows(device: str, old: Modules, new: Modules) -> list[Row]:
    rows: list[Row] = []
    for module in sorted({*old, *new}):
        before, after = old.get(module), new.get(module)
        if before is None:
            rows.append((device, module, "appeared", None, after))
        elif after is None:
            rows.append((device, module, "vanished", before, None))
        elif before != after:
            rows.append((device, module, compare(before, after), before, after))
    return rows


def whole(device: str, change: str, modules: Modules, *, old: bool, new: bool) -> list[Row]:
    """A row for each module of a device, or one without a module."""
    rows: list[Row] = [
        (device, name, change, text if old else None, text if new else None) for name, text in modules.items()
    ]
    return rows or [(device, None, change, None, None)]


class Oracle:
    """What is known of the devices after each run: modules; ``gone``; or ``unknown``, as they never answered."""

    def __init__(self) -> None:
        self.known: list[Modules | str] = []
        self.seen: list[bool] = []

    def add(self, answers: Sequence[Answer]) -> list[Row]:
        first = not self.known
        rows: list[Row] = []
        before = self.known or ["gone"] * len(answers)
        seen = self.seen or [True] * len(answers)
        self.known, self.seen = [], []
        incomplete = "unlisted" in answers
        for number, (own, known, was_seen) in enumerate(zip(answers, before, seen, strict=True)):
            device = f"device{number:04}"
            answer = "unlisted" if incomplete and own == "absent" else own
            if isinstance(answer, dict):
                if isinstance(known, str):
                    rows += whole(device, "joined" if known == "gone" else "seen", answer, old=False, new=True)
                else:
                    rows += module_rows(device, known, answer)
                    if not was_seen:
                        same = {name: text for name, text in answer.items() if known.get(name) == text}
                        if same or not (known or answer):
                            rows += whole(device, "seen", same, old=True, new=True)
                self.known.append(answer)
            elif answer in ("failed", "unlisted"):
                rows += whole(device, "not_seen", known, old=True, new=False) if isinstance(known, dict) else []
                self.known.append(known if isinstance(known, dict) else "unknown")
            else:
                rows += whole(device, "left", known, old=True, new=False) if isinstance(known, dict) else []
                self.known.append("gone")
            self.seen.append(isinstance(answer, dict))
        return [] if first else rows


def recorded(folder: Path) -> list[Row]:
    with connect() as database:
        query = f"SELECT device_name, module_name, change, old_version, new_version FROM '{folder / CHANGES}'"
        return sorted(database.execute(query).fetchall(), key=str)


MODULES = st.dictionaries(st.sampled_from(["ble", "wifi"]), st.sampled_from(["1.0", "1.1", "1.2", "hot"]), max_size=2)
ANSWERS = st.one_of(MODULES, MODULES, st.sampled_from(["failed", "failed", "not_found", "absent", "unlisted"]))
RUNS = st.integers(1, 3).flatmap(
    lambda devices: st.lists(
        # A fleet is not empty, so its last device is in it.
        st.tuples(*[ANSWERS] * (devices - 1), MODULES),
        min_size=2,
        max_size=4,
    )
)


SHARING: list[Answer] = [{"ble": "1.0"}, {"ble": "1.0"}]
"""Two devices that answer in each run, so that each run shows that an ``iot_id`` is shared."""


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs=RUNS, shared=st.booleans())
@pytest.mark.slow
def test_each_run_records_what_changed_since_the_last_answer(runs: list[tuple[Answer, ...]], *, shared: bool) -> None:
    with TemporaryDirectory() as temporary:
        oracle, directory = Oracle(), Path(temporary, "audits")
        for day, own in enumerate(runs, 1):
            answers = (*own, *(SHARING if shared else ()))
            expected, folder = oracle.add(answers), add_run(directory, day, answers, shared=shared)
            if day == 1:
                assert not (folder / CHANGES).exists()
                assert read_manifest(folder).changes is None
            else:
                assert recorded(folder) == sorted(expected, key=str)
                changes = read_manifest(folder).changes
                assert changes is not None
                assert changes.previous == f"202611{day - 1:02}T020000Z-nightly"
                assert sum(changes.counts.values()) == len(expected)


def net(
    directory: Path, since: str, changes: Sequence[str] = (), **conditions: str
) -> tuple[list[Row], dict[str, int], int]:
    with read_changes_since(directory, since, criteria=DeviceFilter(**conditions), changes=changes) as found:  # type: ignore[arg-type]
        rows = [dict(zip(found.devices.columns, row, strict=True)) for row in found.devices]
        names = ("device_name", "module_name", "change", "old_version", "new_version")
        return sorted((tuple(row[name] for name in names) for row in rows), key=str), found.counts, found.recorded


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(runs=RUNS, shared=st.booleans())
@pytest.mark.slow
def test_net_changes_are_those_of_a_comparison_of_two_runs_in_which_all_devices_answered(
    *, runs: list[tuple[Answer, ...]], shared: bool
) -> None:
    with TemporaryDirectory() as temporary:
        directory = Path(temporary, "audits")
        # In the first and in the last run every device answers, so that the comparison knows all versions.
        ends = [tuple(each if isinstance(each, dict) else {} for each in run) for run in (runs[0], runs[-1])]
        for day, answers in enumerate([ends[0], *runs[1:-1], ends[1]], 1):
            add_run(directory, day, (*answers, *(SHARING if shared else ())), shared=shared)
        rows, counts, used = net(directory, "last~1" if len(runs) == 2 else f"last~{len(runs) - 1}")
        expected = [
            row
            for number, (old, new) in enumerate(zip(*ends, strict=True))
            for row in module_rows(f"device{number:04}", old, new)
        ]
        assert used == len(runs) - 1
        assert rows == sorted(expected, key=str)
        assert sum(counts.values()) == len(expected)


@pytest.mark.slow
def test_devices_that_report_one_iot_id_keep_their_own_last_versions(tmp_path: Path) -> None:
    """While one of them does not answer, and where changes are selected by the attributes of their devices."""
    directory = tmp_path / "audits"
    days: list[list[Answer]] = [
        [{"ble": "1.0"}, {"ble": "1.1"}, *SHARING],
        ["failed", "failed", *SHARING],
        ["failed", {"ble": "1.2"}, *SHARING],
        [{"ble": "1.1"}, {"ble": "1.2"}, *SHARING],
    ]
    for day, answers in enumerate(days, 1):
        folder = add_run(directory, day, answers, shared=True)
    assert recorded(folder) == [("device0000", "ble", "upgraded", "1.0", "1.1")]
    first, second = "device0000", "device0001"
    expected = [(first, "ble", "upgraded", "1.0", "1.1"), (second, "ble", "upgraded", "1.1", "1.2")]
    assert net(directory, "last~3") == (expected, dict.fromkeys(NET_CHANGES, 0) | {"upgraded": 2}, 3)
    assert net(directory, "last~3", name=first)[0] == expected[:1]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return write_days(tmp_path / "audits")


def test_changes_are_sealed_and_verified(directory: Path) -> None:
    folder = directory / "20261125T020000Z-nightly"
    assert CHANGES in {info.name for info in read_manifest(folder).files}
    assert verify_run(folder) == []
    honest = read_manifest(folder)
    assert honest.changes is not None
    invented = replace(honest.changes, counts=honest.changes.counts | {"upgraded": 4_711})
    for changes in (invented, replace(honest.changes, counts={})):
        write_manifest(folder, replace(honest, changes=changes))
        assert verify_run(folder) == [f"run.json: its numbers of changes do not follow from {CHANGES}"]
    files = tuple(info for info in honest.files if info.name != CHANGES)
    write_manifest(folder, replace(honest, files=files))
    (folder / CHANGES).rename(folder / "elsewhere")
    assert verify_run(folder) == [f"run.json: has numbers of changes, and {CHANGES} is missing"]
    (folder / "elsewhere").rename(folder / CHANGES)
    write_manifest(folder, honest)
    assert verify_run(folder) == []
    (folder / CHANGES).write_bytes(b"PAR1")
    assert any(problem.startswith(f"{CHANGES}: is not the file") for problem in verify_run(folder))
    (folder / CHANGES).unlink()
    assert f"{CHANGES}: is missing" in verify_run(folder)


@pytest.mark.slow
def test_runs_are_named_by_day_and_by_their_place(directory: Path) -> None:
    expected = net(directory, "last~2")
    assert expected[1] | {"upgraded": 2, "left": 1} == expected[1]
    for reference in ("2026-11-23", "20261123T020000Z-nightly"):
        assert net(directory, reference) == expected
    assert net(directory, "last~3", ("upgraded",), module="BLE")[1]["upgraded"] == 3
    assert net(directory, "last~3", ("left",), module="ble")[0] == []
    with pytest.raises(UsageError, match="no device reports the module blee; did you mean ble"):
        net(directory, "last~3", module="blee")
    for reference in ("last~4", "2026-11-21"):
        with pytest.raises(RunFolderError, match="has no"):
            net(directory, reference)
    with pytest.raises(UsageError, match="nothing is newer"):
        net(directory, "last")


def test_changes_of_deleted_runs_are_kept(directory: Path) -> None:
    expected = net(directory, "last~3")
    prune_runs(directory, keep=1)
    assert sorted(path.name for path in directory.iterdir()) == [ARCHIVE, "20261125T020000Z-nightly"]
    # The first run recorded nothing, so that it is unknown now; the second one is the oldest that can be meant.
    with pytest.raises(RunFolderError, match="has no"):
        net(directory, "last~3")
    assert net(directory, "last~2")[2] == 2
    assert expected[2] == 3
    with read_timeline(directory, "device0000") as found:
        versions = [row[found.table.columns.index("module_version")] for row in found.table]
    assert versions == ["1.1", "1.0", "1.1", "1.0"]


def test_a_gap_in_the_recorded_changes_is_closed_by_a_comparison(directory: Path) -> None:
    expected = net(directory, "last~3")
    folder = directory / "20261124T020000Z-nightly"
    (folder / CHANGES).unlink()
    rows, counts, used = net(directory, "last~3")
    assert (rows, used) == (expected[0], 0)
    assert counts == expected[1]


def test_a_tampered_run_is_not_compared_with(directory: Path) -> None:
    folder = directory / "20261125T020000Z-nightly"
    (folder / DEVICES).write_bytes((folder / DEVICES).read_bytes() + b"x")
    added = add_run(directory, 26, DAYS[3])
    changes = read_manifest(added).changes
    assert changes is not None
    assert changes.previous == "20261124T020000Z-nightly"


def test_a_run_of_a_part_of_the_fleet_records_nothing_and_is_no_predecessor(directory: Path) -> None:
    folder = directory / "20261125T020000Z-nightly"

    def limit(manifest):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
        return replace(manifest, fleet=replace(manifest.fleet, limit=1), changes=None)

    edit_manifest(folder, limit)
    assert record_changes(folder, read_manifest(folder)).changes is None
    assert not (folder / CHANGES).exists()
    changes = read_manifest(add_run(directory, 26, DAYS[3])).changes
    assert changes is not None
    assert changes.previous == "20261124T020000Z-nightly"


def test_answers_that_are_not_believed_are_no_changes(directory: Path) -> None:
    folder = add_run(directory, 26, [{}, {}, {}, "absent"])
    silent = (SilentAccount("demo", "empty", 3),)
    edit_manifest(folder, lambda manifest: replace(manifest, silent=silent))
    manifest = record_changes(folder, replace(read_manifest(folder), files=read_manifest(folder).files[:-1]))
    write_manifest(folder, manifest)
    assert {row[2] for row in recorded(folder)} == {"not_seen"}
    back = recorded(add_run(directory, 27, [{"ble": "1.1"}, {"ble": "1.2"}, {"ble": "1.2"}, "absent"]))
    assert back == [
        ("device0000", "ble", "seen", "1.1", "1.1"),
        ("device0001", "ble", "seen", "1.2", "1.2"),
        ("device0002", "ble", "upgraded", "1.1", "1.2"),
    ]


def test_the_timeline_has_what_a_device_ran_since_when(directory: Path) -> None:
    with read_timeline(directory, "device0000") as found:
        names = found.table.columns
        rows = [dict(zip(names, row, strict=True)) for row in found.table]
        assert [(row["module_version"], row["change"]) for row in rows] == [
            ("1.1", "upgraded"), ("1.0", "downgraded"), ("1.1", "upgraded"), ("1.0", None),
        ]  # fmt: skip
        assert rows[0]["until"] is None
        assert rows[3]["since"] is None
        assert [row["until"] for row in rows[1:]] == [row["since"] for row in rows[:-1]]
        assert any("flaps between 1.0 and 1.1: it went back 2 times" in note for note in found.notes)
        assert any("rolled back from 1.1 to 1.0" in note for note in found.notes)
    with read_timeline(directory, "iot0002") as found:
        rows = [dict(zip(found.table.columns, row, strict=True)) for row in found.table]
        assert [(row["module_version"], row["change"]) for row in rows] == [("1.1", "upgraded"), ("1.0", None)]
        assert any("no answer in 2 of the 3 runs whose changes are recorded" in note for note in found.notes)
    with read_timeline(directory, "device0003") as found:
        assert "is not in the fleet any more" in found.devices[0]
    with pytest.raises(UsageError, match="did you mean device0000"):
        read_timeline(directory, "device000").__enter__()


def test_a_device_that_an_incomplete_list_does_not_have_has_not_left(tmp_path: Path) -> None:
    add_run(tmp_path, 22, [{"ble": "1.0"}, {"ble": "1.0"}])
    pending = add_run(tmp_path, 23, [{"ble": "1.1"}, "absent"], discovery=(DiscoveryInfo("demo"),))
    assert ("device0001", "ble", "not_seen", "1.0", None) in recorded(pending)
    with read_timeline(tmp_path, "device0001") as found:
        assert found.devices[0].endswith(f": {pending.name} does not list it, and its list is incomplete")
    add_run(tmp_path, 24, [{"ble": "1.1"}, "absent"])
    with read_timeline(tmp_path, "device0001") as found:
        assert found.devices[0].endswith(": is not in the fleet any more")


@pytest.mark.slow
def test_nights_without_a_list_hide_no_change(tmp_path: Path) -> None:
    """The platform is down for two nights; versions are compared with those of the night before."""
    directory = tmp_path / "audits"
    add_run(directory, 21, [{"ble": "1.0"}, {"ble": "1.1"}, {"ble": "1.0"}, {}, {"ble": "1.0"}])
    for day in (22, 23):
        night = add_run(directory, day, ["unlisted"] * 5)
        assert {row[2] for row in recorded(night)} == {"not_seen"}
    newest = add_run(directory, 24, [{"ble": "1.1"}, {"ble": "1.0"}, {"ble": "1.0"}, {"ble": "1.0"}, "absent"])
    assert recorded(newest) == [
        ("device0000", "ble", "upgraded", "1.0", "1.1"),
        ("device0001", "ble", "downgraded", "1.1", "1.0"),
        ("device0002", "ble", "seen", "1.0", "1.0"),
        ("device0003", "ble", "appeared", None, "1.0"),
        ("device0004", "ble", "left", "1.0", None),
    ]
    rows, _, count = net(directory, "last~1")
    assert ("device0000", "ble", "upgraded", "1.0", "1.1") in rows
    assert count == 1
    assert latest_pair(directory)[0].name.startswith("20261121")


def test_unlisted_devices_that_share_an_iot_id_keep_their_own_versions(tmp_path: Path) -> None:
    answers: list[Answer] = [{"ble": "1.0"}, {"ble": "1.1"}, {"ble": "1.2"}]
    add_run(tmp_path, 21, answers, shared=True)
    add_run(tmp_path, 22, ["unlisted", {"ble": "1.1"}, "unlisted"], shared=True)
    newest = add_run(tmp_path, 23, answers, shared=True)
    assert recorded(newest) == [
        ("device0000", "ble", "seen", "1.0", "1.0"),
        ("device0002", "ble", "seen", "1.2", "1.2"),
    ]


def test_a_replacement_in_a_night_with_an_incomplete_list_is_no_upgrade(tmp_path: Path) -> None:
    add_run(tmp_path, 21, [{"ble": "1.0"}, {"ble": "1.0"}])
    for day in (22, 23):
        new = structs.replace(both(0), iot_id="iot-new")
        folder = build(tmp_path / f"202611{day}T020000Z-nightly", [new], [ok(new, ("ble", "1.1"))]).folder
        discovery = (DiscoveryInfo("demo"),) if day == 22 else ()
        started_at = f"2026-11-{day}T02:00:00.000Z"
        edit_manifest(folder, lambda m, at=started_at, lists=discovery: replace(m, started_at=at, discovery=lists))  # type: ignore[misc]
        write_manifest(folder, record_changes(folder, read_manifest(folder)))
    assert recorded(folder) == [
        ("device0000", "ble", "left", "1.0", None),
        ("device0001", "ble", "left", "1.0", None),
    ]


def test_devices_of_an_account_that_is_configured_no_more_are_not_seen_once(tmp_path: Path) -> None:
    add_run(tmp_path, 21, [{"ble": "1.0"}, {"ble": "1.0"}])
    for day, expected in ((22, 1), (23, 0)):
        folder = tmp_path / f"202611{day}T020000Z-nightly"
        device = structs.replace(both(0), account="other")
        build(folder, [device], [ok(device, ("ble", "1.0"))])
        edit_manifest(folder, lambda m, day=day: replace(m, started_at=f"2026-11-{day}T02:00:00.000Z"))  # type: ignore[misc]
        write_manifest(folder, record_changes(folder, read_manifest(folder)))
        assert sum(row[2] == "not_seen" for row in recorded(folder)) == 2 * expected


def test_a_device_is_there_or_not_whatever_modules_it_had(tmp_path: Path) -> None:
    """Devices without modules have rows of their own, which later rows of their modules end."""
    directory = tmp_path / "audits"
    days: list[list[Answer]] = [
        [{}, {"ble": "1.0"}, {}, {}, "absent"],
        ["failed", {"ble": "1.0"}, {}, "absent", {}],
        [{"ble": "1.0"}, "failed", {"ble": "1.1"}, "absent", {"ble": "1.0"}],
    ]
    for day, answers in enumerate(days, 1):
        add_run(directory, day, answers)
    assert net(directory, "last~2")[0] == [
        ("device0000", "ble", "appeared", None, "1.0"),
        ("device0001", None, "not_seen", None, None),
        ("device0002", "ble", "appeared", None, "1.1"),
        ("device0003", None, "left", None, None),
        ("device0004", None, "joined", None, None),
    ]


def test_every_change_has_a_count(directory: Path) -> None:
    assert set(net(directory, "last~3")[1]) == set(NET_CHANGES)
