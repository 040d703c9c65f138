"""Drift equals a comparison in plain Python; devices without an answer are not counted as changed."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import orjson
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from msgspec import structs

from auditor.analysis.drift import CHANGES, DriftCounts, diff_runs, latest_pair
from auditor.errors import RunFolderError
from auditor.models import Device, Outcome
from auditor.query.versions import compare_versions
from auditor.runs.folder import DEVICES, MODULES
from auditor.runs.manifest import (
    DiscoveryInfo,
    DiscoveryState,
    Manifest,
    SilentAccount,
    State,
    read_manifest,
    write_manifest,
)
from auditor.runs.selection_info import GapInfo
from tests.runs.run_folders import both, build, by_id, edit_manifest, failed, named, not_found, ok, running

ZERO = DriftCounts(**dict.fromkeys(("compared", "same", *CHANGES), 0))
TURNED = {"older": "upgraded", "newer": "downgraded"}


@dataclass(frozen=True)
class Seen:
    """A device in one run: how its fleet names it, what is known of it in the end, and what became of it."""

    asked: Device
    known: Device
    state: str
    modules: tuple[tuple[str, str], ...]

    @property
    def outcome(self) -> Outcome | None:
        match self.state:
            case "ok" | "empty":
                return ok(self.asked, *self.modules, learnt=self.known)
            case "not_found":
                return not_found(self.asked)
            case "failed":
                return failed(self.asked)
            case _:
                return None


MODULE = st.tuples(
    st.sampled_from(["ble", "BLE", "default"]),
    st.sampled_from(["1.0", "1.1", "v1.1", "2.03", "2.1", "hot", "", "=1+1"]),
)


@st.composite
def seen(draw: st.DrawFn, number: int) -> Seen:
    """A device under one of its names; its iot_id may be another one, as when its name was given again."""
    account = "demo" if number % 3 else "other"
    product = draw(st.sampled_from(["p1", "p1", "p2"]))
    whole = Device(account, product, f"device{number}", draw(st.sampled_from([f"iot{number}", f"iot{number}b"])))
    asked = draw(
        st.sampled_from(
            [structs.replace(whole, iot_id=None), structs.replace(whole, product_key=None, device_name=None), whole]
        )
    )
    state = draw(st.sampled_from(["ok", "ok", "ok", "empty", "not_found", "failed", "pending"]))
    modules = draw(st.lists(MODULE, min_size=1, max_size=3, unique_by=lambda m: m[0].lower())) if state == "ok" else []
    reported = whole if state == "ok" and draw(st.booleans()) else asked
    if reported is not asked and asked.iot_id is None and draw(st.booleans()):
        reported = structs.replace(whole, iot_id="shared")
    return Seen(asked, reported, state, tuple(modules))


@st.composite
def a_run(draw: st.DrawFn) -> list[Seen]:
    return [draw(seen(number)) for number in draw(st.lists(st.integers(0, 15), min_size=3, max_size=12, unique=True))]


def write(folder: Path, run: list[Seen], *, sealed: bool = True) -> Path:
    outcomes = [each.outcome for each in run if each.outcome is not None]
    return (build if sealed else running)(folder, [each.asked for each in run], outcomes).folder


def match(old: list[Seen], new: list[Seen]) -> list[tuple[Seen | None, Seen | None]]:
    """The rule of ``auditor.inventory.matching``, read aloud."""
    pairs: list[tuple[Seen | None, Seen | None]] = []
    left, right = list(old), list(new)
    for by_id_ in (True, False):
        for o in list(left):
            for n in list(right):
                a, b = (without_shared_id(each.known, run) for each, run in ((o, old), (n, new)))
                if a.account != b.account:
                    continue
                ids = a.iot_id is not None and b.iot_id is not None
                names = a.device_name is not None and (a.product_key, a.device_name) == (b.product_key, b.device_name)
                if (ids and a.iot_id == b.iot_id) if by_id_ else (not ids and names):
                    pairs.append((o, n))
                    left.remove(o)
                    right.remove(n)
                    break
    return pairs + [(o, None) for o in left] + [(None, n) for n in right]


def without_shared_id(device: Device, run: list[Seen]) -> Device:
    """A device without an iot_id that devices with other names have, too."""
    known = [each.known for each in run if each.known.iot_id == device.iot_id and each.known.device_name is not None]
    shared = len({(each.product_key, each.device_name) for each in known if each.account == device.account}) > 1
    return structs.replace(device, iot_id=None) if shared and device.device_name is not None else device


def presence(old: Seen | None, new: Seen | None, pairs: list[tuple[Seen | None, Seen | None]]) -> str:
    states = [None if each is None else each.state for each in (old, new)]
    if {"failed", "pending"} & set(states):
        return "not_seen"
    alone = old if new is None else new if old is None else None
    if alone is not None:
        listed = {each.known.account for pair in pairs if (each := pair[0 if old is None else 1]) is not None}
        if alone.known.account not in listed:
            return "not_seen"
        across = [(o or n) for o, n in pairs if (o is None and new is None) or (n is None and old is None)]
        others = [each for each in across if each is not None and each.known.account == alone.known.account]
        own, other = ([o for o, _ in pairs if o], [n for _, n in pairs if n])[:: -1 if old is None else 1]
        ways = {identity(without_shared_id(each.known, other)) for each in others}
        if any({identity(without_shared_id(alone.known, own)), way} == {"names", "id"} for way in ways):
            return "not_seen"
    before, after = (state in ("ok", "empty") for state in states)
    return {(True, True): "compared", (True, False): "left", (False, True): "joined", (False, False): "absent"}[
        before, after
    ]


def identity(device: Device) -> str:
    if device.iot_id is None:
        return "names"
    return "both" if device.device_name is not None else "id"


def expected(old: list[Seen], new: list[Seen]) -> tuple[DriftCounts, Counter[tuple[object, ...]]]:
    """The counts, and every change of every device."""
    pairs = match(old, new)
    counts: Counter[str] = Counter()
    changes: Counter[tuple[object, ...]] = Counter()
    reporting: dict[tuple[object, ...], set[str]] = {}
    for o, n in pairs:
        became = presence(o, n, pairs)
        counts[became] += 1
        known = [each.known for each in (n, o) if each is not None]
        names = [
            next((getattr(each, key) for each in known if getattr(each, key) is not None), None)
            for key in ("account", "product_key", "device_name", "iot_id")
        ]
        before, after = ({name.lower(): version for name, version in each.modules} if each else {} for each in (o, n))
        for module in before.keys() | after.keys():
            was, now = before.get(module), after.get(module)
            sides = reporting.setdefault((names[0], names[1], module), set())
            sides |= {side for side, version in (("old", was), ("new", now)) if version is not None}
            if became == "not_seen":
                sides.add("unsure")
            if became != "compared":
                continue
            if was is None or now is None:
                change = "appeared" if was is None else "vanished"
            else:
                change = "same" if was == now else TURNED.get(compare_versions(was, now), "changed")
            counts[change] += 1
            if change != "same":
                changes[*names, module, change, was, now] += 1
        if became in ("joined", "left", "not_seen"):
            changes[*names, None, became, None, None] += 1
    counts["added"] = sum(sides == {"new"} for sides in reporting.values())
    counts["removed"] = sum(sides == {"old"} for sides in reporting.values())
    return replace(ZERO, **{name: counts[name] for name in asdict(ZERO)}), changes


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(old=a_run(), new=a_run(), old_sealed=st.booleans(), new_sealed=st.booleans())
@example(
    old=[Seen(named(1), named(1), "ok", (("ble", "1"),))],
    new=[Seen(named(1), named(1), "failed", ())],
    old_sealed=True,
    new_sealed=True,
)
@pytest.mark.slow
def test_drift_equals_a_comparison_in_plain_python(
    *, old: list[Seen], new: list[Seen], old_sealed: bool, new_sealed: bool
) -> None:
    with TemporaryDirectory() as folder:
        before = write(Path(folder, "old"), old, sealed=old_sealed)
        after = write(Path(folder, "new"), new, sealed=new_sealed)
        assert_drift_is_as_expected(before, old, after, new)
        assert_drift_is_as_expected(after, new, before, old)


def assert_drift_is_as_expected(before: Path, old: list[Seen], after: Path, new: list[Seen]) -> None:
    with diff_runs(before, after) as drift:
        counts, changes = expected(old, new)
        assert drift.counts == counts
        found = Counter((*row[:4], row[4] and row[4].lower(), *row[5:]) for row in drift.devices)
        assert found == changes
        for row in drift.modules:
            told = dict(zip(drift.modules.columns, row, strict=True))
            compared = sum(told[name] for name in ("same", "upgraded", "downgraded", "changed"))
            alone = sum(told[name] for name in ("appeared", "vanished", "joined", "left", "not_seen"))
            assert told["old_devices"] + told["new_devices"] == 2 * compared + alone
        for name in ("same", "upgraded", "downgraded", "changed", "appeared", "vanished"):
            at = drift.modules.columns.index(name)
            assert sum(row[at] for row in drift.modules) == getattr(counts, name)


def diff(
    tmp_path: Path, old: list[Outcome], new: list[Outcome], pending: tuple[Device, ...] = ()
) -> tuple[DriftCounts, list[tuple[object, ...]]]:
    """The drift between runs of the devices that have outcomes; the new one has pending ones besides."""
    folders = []
    for side, outcomes, also in (("old", old, ()), ("new", new, pending)):
        fleet = [*(outcome.device for outcome in outcomes), *also]
        folders.append(build(tmp_path / side, fleet, outcomes).folder)
    with diff_runs(*folders) as drift:
        return drift.counts, list(drift.devices)


def test_a_device_that_failed_or_is_pending_has_neither_vanished_nor_left(tmp_path: Path) -> None:
    old: list[Outcome] = [ok(named(n), ("ble", "1")) for n in range(3)]
    counts, changes = diff(tmp_path, old, [failed(named(0)), ok(named(2), ("ble", "1"))], pending=(named(1),))
    assert counts == replace(ZERO, compared=1, not_seen=2, same=1)
    assert [row[5] for row in changes] == ["not_seen", "not_seen"]


def test_a_module_is_not_removed_while_a_device_that_had_it_was_not_seen(tmp_path: Path) -> None:
    old: list[Outcome] = [ok(named(0), ("zigbee", "1")), ok(named(1), ("ble", "1"))]
    assert diff(tmp_path, old, [failed(named(0)), ok(named(1), ("ble", "1"))])[0].removed == 0
    assert diff(tmp_path / "b", old, [ok(named(0)), ok(named(1), ("ble", "1"))])[0].removed == 1


def test_a_device_is_the_same_however_either_fleet_names_it(tmp_path: Path) -> None:
    old: list[Outcome] = [ok(named(0), ("ble", "1"), learnt=both(0)), ok(by_id(1), ("ble", "1"), learnt=both(1))]
    new: list[Outcome] = [ok(by_id(0), ("ble", "2")), ok(named(1), ("ble", "2"))]
    counts, changes = diff(tmp_path, old, new)
    assert counts == replace(ZERO, compared=2, upgraded=2)
    assert [row[:4] for row in changes] == [("demo", "p1", f"device000{n}", f"iot000{n}") for n in range(2)]


@pytest.mark.slow
def test_devices_whose_answers_have_one_iot_id_are_matched_by_their_names(tmp_path: Path) -> None:
    old: list[Outcome] = [ok(named(n), ("ble", f"1.{n}"), learnt=both(n)) for n in range(3)]
    new: list[Outcome] = [ok(named(n), ("ble", "2"), learnt=structs.replace(both(n), iot_id="same")) for n in range(3)]
    for number, (before, after) in enumerate(((old, new), (new, old), (new, new))):
        counts, changes = diff(tmp_path / str(number), before, after)
        assert (counts.compared, counts.joined, counts.left, counts.not_seen) == (3, 0, 0, 0)
        if before is old:
            assert [(*row[1:3], *row[6:]) for row in changes] == [
                ("p1", f"device000{n}", f"1.{n}", "2") for n in range(3)
            ]
        assert counts.same == (3 if before is after else 0)


def test_an_iot_id_of_several_answers_is_no_name_of_a_device_that_has_no_other(tmp_path: Path) -> None:
    new: list[Outcome] = [
        ok(named(n), ("ble", "2"), learnt=structs.replace(both(n), iot_id="iot0000")) for n in range(2)
    ]
    assert diff(tmp_path, [ok(by_id(0))], new)[0] == replace(ZERO, not_seen=3)


def test_a_reused_name_is_another_device(tmp_path: Path) -> None:
    again = structs.replace(both(0), iot_id="another")
    counts, _ = diff(tmp_path, [ok(both(0), ("ble", "1"))], [ok(again, ("ble", "1"))])
    assert counts == replace(ZERO, joined=1, left=1)


def test_devices_that_may_be_the_same_under_names_that_cannot_be_matched_are_not_seen(tmp_path: Path) -> None:
    counts, _ = diff(tmp_path, [ok(named(0))], [ok(by_id(0))])
    assert counts == replace(ZERO, not_seen=2)


def test_a_device_that_the_platform_no_longer_knows_has_left(tmp_path: Path) -> None:
    counts, _ = diff(tmp_path, [ok(named(0), ("ble", "1")), not_found(named(1))], [not_found(named(0)), ok(named(1))])
    assert counts == replace(ZERO, joined=1, left=1, removed=1)


def test_a_device_listed_twice_counts_once(tmp_path: Path) -> None:
    old: list[Outcome] = [ok(named(0), ("ble", "1"), learnt=both(0)), ok(by_id(0), ("BLE", "2"), learnt=both(0))]
    counts, changes = diff(tmp_path, old, [ok(named(0), ("ble", "3"))])
    assert counts == replace(ZERO, compared=1, upgraded=1)
    assert [row[5:] for row in changes] == [("upgraded", "2", "3")]


def test_one_name_of_two_devices_is_matched_once(tmp_path: Path) -> None:
    old: list[Outcome] = [ok(structs.replace(both(0), iot_id=each), ("ble", "1")) for each in ("a", "b")]
    counts, _ = diff(tmp_path, old, [ok(named(0), ("ble", "1"))])
    assert counts == replace(ZERO, compared=1, left=1, same=1)


def test_identities_with_any_text_are_distinguished(tmp_path: Path) -> None:
    devices = [
        Device("demo", "p", "1:x/y", None),
        Device("demo", "p/1:x", "y", None),
        Device("demo", None, None, "n1:p/y"),
    ]
    outcomes: list[Outcome] = [ok(device, ("ble", str(at))) for at, device in enumerate(devices)]
    assert diff(tmp_path, outcomes, outcomes)[0] == replace(ZERO, compared=3, same=3)


Change = Callable[[Manifest], Manifest]


def gap_of(product: str | None, *, more: int = 0, state: DiscoveryState = "partial") -> Change:
    """Return the change to a run that did not list a product to its end, and ``more`` that are not named."""
    gaps = (GapInfo(product, 1, 2, 2),)
    return lambda run: replace(run, discovery=(DiscoveryInfo("demo", state, gap_count=1 + more, gaps=gaps),))


@pytest.mark.parametrize(
    ("change", "unseen"),
    [
        (lambda run: replace(run, accounts=()), 3),
        (lambda run: replace(run, discovery=(DiscoveryInfo("demo"),)), 3),
        (lambda run: replace(run, fleet=replace(run.fleet, limit=run.fleet.devices)), 3),
        (gap_of("p1"), 2),
        (gap_of("p1", more=1), 3),
        (gap_of(None), 3),
        (gap_of("p9"), 0),
        (gap_of("p1", state="complete"), 0),
        (lambda run: replace(run, fleet=replace(run.fleet, limit=run.fleet.devices + 1)), 0),
        (lambda run: run, 0),
    ],
)
def test_a_device_that_a_run_did_not_list_is_not_seen_and_has_not_left(
    tmp_path: Path, change: Change, unseen: int
) -> None:
    fleet = [named(0), named(1), named(2), named(3, product="p2")]
    whole = build(tmp_path / "whole", fleet, [ok(each, ("ble", "1")) for each in fleet]).folder
    part = build(tmp_path / "part", fleet[:1], [ok(fleet[0], ("ble", "1"))]).folder
    edit_manifest(part, change)
    with diff_runs(whole, part) as drift:
        assert (drift.counts.left, drift.counts.not_seen, drift.counts.compared) == (3 - unseen, unseen, 1)
    with diff_runs(part, whole) as drift:
        assert (drift.counts.joined, drift.counts.not_seen) == (3 - unseen, unseen)


def test_devices_of_a_silent_account_are_not_seen(tmp_path: Path) -> None:
    fleet = [named(0), named(1)]
    old = build(tmp_path / "old", fleet, [ok(each, ("ble", "1")) for each in fleet]).folder
    new = build(tmp_path / "new", fleet, [not_found(fleet[0]), ok(fleet[1])]).folder
    with diff_runs(old, new) as drift:
        assert (drift.counts.left, drift.counts.vanished, drift.counts.not_seen) == (1, 1, 0)
    edit_manifest(new, lambda run: replace(run, silent=(SilentAccount("demo", "not_found", 2),)))
    with diff_runs(old, new) as drift:
        assert (drift.counts.left, drift.counts.vanished, drift.counts.not_seen) == (0, 0, 2)


def test_a_module_has_the_name_of_the_inventory(tmp_path: Path) -> None:
    fleet = [named(0), named(1, product="p2")]
    old = build(tmp_path / "old", fleet, [ok(fleet[0], ("BLE", "1")), ok(fleet[1], ("BLE", "1"))])
    new = build(tmp_path / "new", fleet, [ok(fleet[0], ("ble", "2")), ok(fleet[1], ("BLE", "1"))])
    with diff_runs(old.folder, new.folder) as drift:
        assert [row[1:3] for row in drift.modules] == [("p1", "ble"), ("p2", "BLE")]


def test_partial_tampered_and_reversed_runs_cause_warnings(tmp_path: Path) -> None:
    old = build(tmp_path / "old", [named(0), named(1)], [ok(named(0), ("ble", "1"))]).folder
    new = build(tmp_path / "new", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    (new / MODULES).write_bytes((tmp_path / "old" / MODULES).read_bytes())
    edit_manifest(new, lambda m: replace(m, files=tuple(f for f in m.files if f.name != DEVICES)))
    edit_manifest(old, lambda m: replace(m, started_at="2026-12-01T00:00:00.000Z"))
    with diff_runs(old, new) as drift:
        assert [(warning.kind, warning.run, warning.detail) for warning in drift.warnings] == [
            ("partial", str(old), "partial: 0 devices failed, 1 pending"),
            ("tampered", str(new), "devices.parquet is not the file that was sealed (its digest differs)"),
            ("order", str(old), "started after new: the old run is the newer one"),
        ]
        drift.modules.write(tmp_path / "drift.json", "json")
    document = orjson.loads((tmp_path / "drift.json").read_bytes())
    assert document["old"]["complete"] is False
    assert [warning["kind"] for warning in document["new"]["warnings"]] == ["tampered"]
    assert document["modules"][0]["same"] == 1


def test_the_latest_pair_has_one_name_and_has_ended(tmp_path: Path) -> None:
    states: list[tuple[str, State]] = [
        ("nightly", "partial"), ("other", "complete"), ("nightly", "aborted"), ("nightly", "running"),
    ]  # fmt: skip
    for at, (name, state) in enumerate(states):
        began = f"2026-11-2{at}T00:00:00.000Z"
        folder = running(tmp_path / f"{at}", [named(0)], [], name=name).folder
        write_manifest(folder, replace(read_manifest(folder), started_at=began, state=state))
    assert latest_pair(tmp_path) == (tmp_path / "0", tmp_path / "2")
    with pytest.raises(RunFolderError, match="no two ended runs"):
        latest_pair(tmp_path / "0")


def test_a_run_of_answers_alone_is_not_changed(tmp_path: Path) -> None:
    folder = build(tmp_path / "run", [named(0)], [ok(named(0), ("ble", "1"))]).folder
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with diff_runs(folder, folder) as drift:
        assert drift.counts == replace(ZERO, compared=1, same=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_versions_of_both_runs_decide_whether_a_date_is_an_upgrade(tmp_path: Path) -> None:
    devices = [named(number) for number in range(2)]
    for others in ("27.09.2020", "03.04.2020"):
        old = build(tmp_path / others / "old", devices, [ok(each, ("ble", "02.01.2020")) for each in devices])
        news = [ok(devices[0], ("ble", "01.02.2020")), ok(devices[1], ("ble", others))]
        new = build(tmp_path / others / "new", devices, news)
        with diff_runs(old.folder, new.folder) as drift:
            counts = (drift.counts.upgraded, drift.counts.downgraded, drift.counts.changed)
        assert counts == ((2, 0, 0) if others == "27.09.2020" else (1, 0, 1))
