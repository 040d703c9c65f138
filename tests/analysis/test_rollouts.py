"""States of rollouts, compared with an oracle in plain Python over thirty simulated nights."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import pytest

from auditor.analysis.rollouts import Rollout, read_rollouts
from auditor.hooks.prometheus import render_metrics
from auditor.runs.folder import FIRMWARE, TASKS
from auditor.runs.manifest import read_manifest
from auditor.runs.selection_info import ReleasesInfo
from tests.analysis.simulated_nights import (
    BETA,
    DEVICES_EACH,
    KINDS,
    KNOWN,
    NEW,
    NIGHTS,
    OLD,
    PRODUCTS,
    UNKNOWN,
    Fleet,
    released,
    share_on_new,
    started,
    task_status,
    write_night,
)
from tests.runs.run_folders import build, edit_manifest, failed, named

ORDER = (OLD, NEW, BETA)
"""The versions, the oldest first."""


class Expected(NamedTuple):
    """What a rollout should be in a night."""

    target: str
    on_target: int
    devices: int
    state: str
    runs_in_state: int


class Oracle:
    """The rollouts by their definition, from the truth alone. Only nights with all answers count before a night."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet

    def counts(self, night: int, account: str, product: str, *, everyone: bool = False) -> Counter[str]:
        versions = self.fleet.versions[night, account, product]
        answered = self.fleet.answered[night, account, product]
        devices = (at for at in range(DEVICES_EACH) if answered[at] or (everyone and at))
        return Counter(versions[at] for at in devices)

    def target(self, night: int, account: str, product: str) -> str:
        if account == KNOWN and night >= 1:
            return released(product, night)
        used = set(self.counts(night, account, product))
        for earlier in range(night):
            found = self.counts(earlier, account, product)
            used |= {
                version for version, number in found.items() if Fraction(number, found.total()) >= Fraction(1, 100)
            }
        return max(used, key=ORDER.index)

    def share(self, night: int, account: str, product: str, target: str, *, everyone: bool = False) -> Fraction:
        found = self.counts(night, account, product, everyone=everyone)
        on = sum(number for version, number in found.items() if ORDER.index(version) >= ORDER.index(target))
        return Fraction(on, found.total())

    def change(self, night: int, account: str, product: str, target: str) -> float | None:
        """The change of the share per day since the last night with all answers; None: there is none."""
        before = next((each for each in range(night - 1, -1, -1) if each not in KINDS), None)
        if before is None:
            return None
        days = max(1.0, (started(night) - started(before)).total_seconds() / 86_400)
        last, first = (self.share(each, account, product, target) for each in (night, before))
        return float(last - first) / days

    def expected(self, night: int, account: str, product: str) -> Expected:
        """What holds in a night, by the truth of all devices but the dead one."""
        target = self.target(night, account, product)
        nights = [each for each in range(night) if each not in KINDS] + [night]
        points = [(started(each), self.share(each, account, product, target, everyone=True)) for each in nights]
        state = state_of(points)
        runs = 1
        while runs < len(points) and state_of(points[:-runs]) == state:
            runs += 1
        answered = self.counts(night, account, product)
        on = sum(number for version, number in answered.items() if ORDER.index(version) >= ORDER.index(target))
        return Expected(target, on, answered.total(), state, runs)


def state_of(points: Sequence[tuple[object, Fraction]]) -> str:
    """The state at the last of some points, by the sentences of the documentation."""
    now, last = points[-1]
    shares = [share for _, share in points]
    if last >= Fraction(95, 100):
        return "done"
    old = [at for at, (time, _) in enumerate(points[:-1]) if (now - time).total_seconds() >= 0.9 * 3 * 86_400]  # type: ignore[operator]
    reference = old[-1] if old else 0
    if len(points) > 1:
        peak = max(shares[:-1])
        since = max(reference, *(at for at, share in enumerate(shares[:-1]) if share == peak))
        gained = last - min(shares[since:-1])
        if peak - last > Fraction(10, 100):
            return "moving" if gained >= Fraction(8, 1000) else "rolled_back"
    if max(shares) < Fraction(1, 100):
        return "not_started"
    if len(points) > 1 and last - shares[reference] >= Fraction(8, 1000):
        return "moving"
    return "stalled" if old else "unknown"


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fleet, list[Path]]:
    fleet, directory = Fleet(3), tmp_path_factory.mktemp("nights")
    return fleet, [write_night(directory, fleet, night) for night in range(NIGHTS)]


@pytest.fixture(scope="module")
def found(nights: tuple[Fleet, list[Path]]) -> list[dict[tuple[str, str], Rollout]]:
    """The rollouts of each night."""
    return [
        {(each.account, str(each.product_key)): each for each in read_rollouts(folder).rollouts} for folder in nights[1]
    ]


FEW_NIGHTS = 5
"""Nights that are built in a second."""

GROUPS = [(account, product) for account in (KNOWN, UNKNOWN) for product in PRODUCTS]


@pytest.mark.parametrize(("account", "product"), GROUPS)
@pytest.mark.slow
def test_the_rollouts_of_thirty_nights_are_those_of_an_oracle(
    nights: tuple[Fleet, list[Path]], found: list[dict[tuple[str, str], Rollout]], account: str, product: str
) -> None:
    oracle = Oracle(nights[0])
    for night, rollouts in enumerate(found):
        rollout, kind = rollouts[account, product], KINDS.get(night, "full")
        expected = oracle.expected(night, account, product)
        where = f"night {night}, {kind}"
        assert (rollout.devices, rollout.target) == (expected.devices, expected.target), where
        assert rollout.on_target + rollout.behind == rollout.devices, where
        if kind == "full":
            seen = rollout.on_target, rollout.state, rollout.runs_in_state
            assert seen == (expected.on_target, expected.state, expected.runs_in_state), where
            assert rollout.share == expected.on_target / expected.devices, where
            assert rollout.change == pytest.approx(oracle.change(night, account, product, expected.target)), where
        elif kind == "few":
            assert (rollout.state, rollout.reason, rollout.share) == ("unknown", "few_answers", None), where
        else:  # a state is never false, but may be unknown
            assert rollout.state in {expected.state, "unknown"}, where
            assert rollout.low is not None
            assert rollout.high is not None
            truth = oracle.share(night, account, product, expected.target, everyone=True)
            assert rollout.low - 1e-9 <= truth <= rollout.high + 1e-9, where


@pytest.mark.slow
def test_the_nights_have_every_state_and_runs_that_decide_little(
    found: list[dict[tuple[str, str], Rollout]],
) -> None:
    states = Counter(rollout.state for rollouts in found for rollout in rollouts.values())
    assert set(states) == {"done", "moving", "stalled", "rolled_back", "not_started", "unknown"}
    decided = [
        rollout.state != "unknown"
        for night, rollouts in enumerate(found)
        if KINDS.get(night) in {"sample", "most"}
        for rollout in rollouts.values()
    ]
    assert sum(decided) > len(decided) / 2


@pytest.mark.slow
def test_a_beta_device_changes_no_bar_where_releases_are_known(found: list[dict[tuple[str, str], Rollout]]) -> None:
    known = [rollouts[KNOWN, "beta"] for night, rollouts in enumerate(found) if night >= 3 and night not in KINDS]
    assert {(each.target, each.target_source, each.state, each.behind) for each in known} == {
        (OLD, "released", "done", 0)
    }
    unknown = [rollouts[UNKNOWN, "beta"] for night, rollouts in enumerate(found) if night >= 3 and night not in KINDS]
    assert {(each.target, each.target_source, each.state) for each in unknown} == {(BETA, "newest", "not_started")}


@pytest.mark.slow
def test_devices_behind_are_counted_by_their_update(
    nights: tuple[Fleet, list[Path]], found: list[dict[tuple[str, str], Rollout]]
) -> None:
    fleet, _ = nights
    seen: Counter[str] = Counter()
    for night, rollouts in enumerate(found):
        for product in PRODUCTS:
            rollout = rollouts[KNOWN, product]
            if night < 1:
                assert rollout.failed is None
                continue
            expected: Counter[str] = Counter()
            for device, version in enumerate(fleet.versions[night, KNOWN, product]):
                if fleet.answered[night, KNOWN, product][device] and ORDER.index(version) < ORDER.index(
                    str(rollout.target)
                ):
                    status = task_status(fleet, night, product, device)
                    names = {None: "never_offered", "CANCELED": "never_offered", "FAILED": "failed"}
                    expected[names.get(status, "reverted" if status == "SUCCEEDED" else "offered")] += 1
            if rollout.behind:
                counted = {name: getattr(rollout, name) for name in ("failed", "offered", "reverted", "never_offered")}
                assert Counter(counted) == expected, (night, product)
                assert sum(counted.values()) == rollout.behind
                seen.update(counted)
    assert min(seen.values()) > 0
    assert len(seen) == 4
    assert all(
        rollout.failed is None for rollouts in found for (account, _), rollout in rollouts.items() if account == UNKNOWN
    )


@pytest.mark.slow
def test_the_date_of_a_staged_rollout_is_when_it_is_done(found: list[dict[tuple[str, str], Rollout]]) -> None:
    done = next(night for night in range(NIGHTS) if share_on_new("staged", night) >= 0.95)
    dated = 0
    for night, rollouts in enumerate(found):
        rollout = rollouts[KNOWN, "staged"]
        if rollout.expected_at is not None:
            assert abs((rollout.expected_at - started(done).date()).days) <= 1, night
            assert rollout.state == "moving"
            dated += 1
        elif rollout.state == "moving":
            assert rollout.no_date is not None
    assert dated >= 5
    stalled = [rollouts[KNOWN, "stalled"] for rollouts in found[14:]]
    assert all(each.expected_at is None for each in stalled)


@pytest.mark.slow
def test_shares_have_a_place_for_each_run(found: list[dict[tuple[str, str], Rollout]]) -> None:
    shares = found[-1][KNOWN, "staged"].shares
    assert len(shares) == NIGHTS
    assert [at for at, share in enumerate(shares) if share is None] == [
        at for at, kind in KINDS.items() if kind == "few"
    ]


@pytest.mark.slow
def test_the_rollouts_of_the_first_nights_are_those_of_an_oracle(tmp_path: Path) -> None:
    fleet = Fleet(3)
    last = [write_night(tmp_path, fleet, night) for night in range(FEW_NIGHTS)][-1]
    oracle, found = Oracle(fleet), read_rollouts(last).rollouts
    assert len(found) == len(GROUPS)
    for each in found:
        expected = oracle.expected(FEW_NIGHTS - 1, each.account, str(each.product_key))
        assert (each.target, each.on_target, each.devices) == expected[:3]
        assert (each.state, each.runs_in_state) == expected[3:]


@pytest.mark.parametrize("complete", [False, True], ids=["failed", "complete"])
def test_without_firmware_in_the_newest_run_that_of_an_earlier_one_counts(tmp_path: Path, *, complete: bool) -> None:
    fleet = Fleet(3)
    write_night(tmp_path, fleet, 8)
    newest = write_night(tmp_path, fleet, 10)
    for name in (FIRMWARE, TASKS):
        (newest / name).unlink()
    infos = (ReleasesInfo(KNOWN, problems=() if complete else ("not permitted",)),)
    edit_manifest(newest, lambda manifest: replace(manifest, releases=infos))
    found = {each.product_key: each for each in read_rollouts(newest).rollouts if each.account == KNOWN}
    # A run that has read all firmware shows that there is none any more.
    assert {each.target_source for each in found.values()} == {"newest" if complete else "released"}
    assert found["beta"].target == (BETA if complete else OLD)
    assert found["offered"].target == (OLD if complete else NEW)
    assert all(each.failed is None for each in found.values())


def test_a_run_without_answers_has_no_rollouts_and_its_directory_those_of_the_run_before(tmp_path: Path) -> None:
    fleet = Fleet(3)
    for night in (0, 2, 4):
        write_night(tmp_path, fleet, night)
    before = read_rollouts(tmp_path)
    assert before.rollouts
    empty = build(tmp_path / "20261201T020000Z-nightly", [named(0)], [failed(named(0))]).folder
    name = read_manifest(tmp_path / str(before.run)).name
    edit_manifest(empty, lambda manifest: replace(manifest, name=name, started_at="2026-12-01T02:00:00.000Z"))
    assert (read_rollouts(empty).rollouts, read_rollouts(empty).run) == ((), None)
    assert "auditor_rollouts{" not in render_metrics(empty).decode()
    again = read_rollouts(tmp_path)
    assert (again.run, again.rollouts) == (before.run, before.rollouts)
