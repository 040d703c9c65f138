"""Plans: figures follow from counts and quotas, and a plan that follows the advice fits."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

import auditor
from auditor.engine.allocation import concurrency_per_account
from auditor.errors import SettingsError, UsageError
from auditor.planning.capacity import MAX_CONCURRENCY, plan_devices
from auditor.planning.measurements import QueriedDevices, RunMeasurements
from auditor.runs.manifest import write_manifest
from auditor.runs.selection_info import Rate
from auditor.simulator.server import Simulator
from tests.integration.audits import interrupted_audit, plain_world, settings_at
from tests.integration.test_audit import account_table, settings_for

HOUR = 3600.0


def settings_of(*quotas: tuple[object, float], concurrency: int = 64) -> auditor.Settings:
    """Return settings with an account for each quota and share, named a0, a1 and so on."""
    accounts = [
        {
            "name": f"a{number}",
            "endpoint": "https://example.com/",
            "access_key_id": {"env": f"NO_SUCH_VARIABLE_{number}"},
            "access_key_secret": {"env": "NO_SUCH_VARIABLE"},
            "calls_per_second": quota,
            "quota_share": share,
        }
        for number, (quota, share) in enumerate(quotas)
    ]
    return auditor.parse_settings({"concurrency": concurrency, "account": accounts})


def measurements(queried: Mapping[str, QueriedDevices], latency: float | None = None) -> RunMeasurements:
    return RunMeasurements(Path("audits/20261122T020000Z-audit"), queried, latency)


def test_without_a_run_one_call_per_device_and_the_latency_are_assumed() -> None:
    plan = plan_devices(settings_of((10, 0.5)), {"a0": 970}, None)
    (account,) = plan.accounts
    assert (plan.run, plan.devices, plan.calls, plan.latency, plan.latency_assumed) == (None, 970, 970, 0.3, True)
    assert (account.calls_per_device, account.calls_assumed, account.calls_per_second) == (1.0, True, 5.0)
    assert plan.seconds == account.seconds == 200.0  # at 97% of 5 calls a second
    assert plan.in_flight == account.in_flight == 2
    assert (plan.window, plan.fits, account.fits, account.remedy) == (None, None, None, None)


def test_calls_and_latency_are_those_of_the_measured_run() -> None:
    before = measurements({"a0": QueriedDevices(3, 4)}, latency=0.05)
    plan = plan_devices(settings_of((10, 1), (100, 1)), {"a0": 10, "a1": 10}, before)
    assert plan.run == "20261122T020000Z-audit"
    assert [(each.calls, each.calls_assumed, each.in_flight) for each in plan.accounts] == [
        (14, False, 1),
        (10, True, 5),
    ]
    assert (plan.calls, plan.in_flight, plan.latency, plan.latency_assumed) == (24, 6, 0.05, False)


def test_accounts_are_audited_concurrently_so_the_slowest_determines_the_time() -> None:
    plan = plan_devices(settings_of((10, 1), (1, 1)), {"a0": 970, "a1": 970}, None, window=500)
    assert [each.seconds for each in plan.accounts] == [100.0, 1000.0]
    assert plan.seconds == 1000.0
    assert [each.fits for each in plan.accounts] == [True, False]
    assert plan.fits is False


@pytest.mark.parametrize("quota", ["unlimited", "auto"])
def test_the_time_of_an_account_without_a_known_quota_is_unknown(quota: str) -> None:
    settings = settings_of((10, 1), (quota, 1))
    plan = plan_devices(settings, {"a0": 97, "a1": 97}, None, window=10)
    assert [each.seconds for each in plan.accounts] == [10.0, None]
    assert [each.fits for each in plan.accounts] == [True, None]
    assert (plan.seconds, plan.in_flight, plan.fits) == (None, None, None)
    assert plan_devices(settings, {"a0": 97, "a1": 97}, None, window=9).fits is False
    assert plan_devices(settings, {"a0": 97}, None, window=10).fits is True  # no device is queried there


@pytest.mark.parametrize(
    ("concurrency", "quotas", "advised"),
    [
        (64, [(200, 1)], None),  # 60 are needed
        (64, [(400, 1)], 120),
        (64, [(200, 1), (10, 1)], None),  # 60 and 3, of 60 and 3
        (64, [(210, 1), (10, 1)], 67),  # 63 and 3, of 60 and 3
        (64, [(100, 1), (100, 0.1)], None),  # 30 and 3, of 32 each: a share may be changed
        (64, [(200, 1), ("unlimited", 1)], 120),  # 60, of 32
        (1, [(1, 1), (1, 1)], None),  # each has one in any case
        (64, [("unlimited", 1)], None),
        (64, [(100_000, 1)], 30_000),  # more than there can be
    ],
)
def test_advised_concurrency_is_enough_for_each_account(
    concurrency: int, quotas: list[tuple[object, float]], advised: int | None
) -> None:
    settings = settings_of(*quotas, concurrency=concurrency)
    assert plan_devices(settings, {"a0": 9, "a1": 9}, None).concurrency_advised == advised


def test_maximum_concurrency_is_that_of_the_settings() -> None:
    assert settings_of((1, 1), concurrency=MAX_CONCURRENCY).concurrency == MAX_CONCURRENCY
    with pytest.raises(SettingsError, match="concurrency"):
        settings_of((1, 1), concurrency=MAX_CONCURRENCY + 1)


def test_sufficient_quota_share_is_advised() -> None:
    plan = plan_devices(settings_of((10, 0.5)), {"a0": 194_000}, None, window=8 * HOUR)
    remedy = plan.accounts[0].remedy
    assert remedy is not None
    assert remedy.quota_share == 0.7  # 194,000 calls at 9.7 a second take 20,000 s, of 28,800: 0.694 would do
    assert (remedy.devices, remedy.windows) == (139_680, 2)


def test_fewer_devices_or_more_windows_are_advised_if_the_complete_quota_is_not_enough() -> None:
    plan = plan_devices(settings_of((10, 1)), {"a0": 1_000_000}, None, window=8 * HOUR)
    remedy = plan.accounts[0].remedy
    assert remedy is not None
    assert (remedy.quota_share, remedy.devices, remedy.windows) == (None, 279_360, 4)


def test_window_without_room_for_one_device_has_no_number_of_windows() -> None:
    plan = plan_devices(settings_of((0.01, 1)), {"a0": 5}, None, window=60)
    remedy = plan.accounts[0].remedy
    assert remedy is not None
    assert (remedy.quota_share, remedy.devices, remedy.windows) == (None, 0, None)


shares = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
quotas = st.lists(
    st.tuples(st.floats(0.001, 1_000_000) | st.sampled_from([1, 10, 50, "unlimited"]), shares), min_size=1, max_size=4
)
counts = st.integers(0, 5_000_000)
queried_devices = st.none() | st.integers(1, 10**6).flatmap(
    lambda devices: st.builds(QueriedDevices, st.just(devices), st.integers(devices, 9 * devices))
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[auditor.Settings, dict[str, int], RunMeasurements | None, float]:
    settings = settings_of(*draw(quotas), concurrency=draw(st.integers(1, 200)))
    names = [account.name for account in settings.account]
    queried = {name: found for name in names if (found := draw(queried_devices)) is not None}
    before = measurements(queried, draw(st.none() | st.floats(0.001, 30))) if queried else None
    devices = {name: draw(counts) for name in names}
    seconds = plan_devices(settings, devices, before).seconds
    near = [] if seconds is None else [st.floats(0.3, 1.1).map(lambda factor: max(1.0, factor * seconds))]
    return settings, devices, before, draw(st.one_of(st.floats(1, 100_000), *near))


@examples(deadline=None)
@given(cases())
def test_advice_is_sufficient_and_minimal(
    case: tuple[auditor.Settings, dict[str, int], RunMeasurements | None, float],
) -> None:
    settings, devices, before, window = case
    plan = plan_devices(settings, devices, before, window)
    for account, each in zip(settings.account, plan.accounts, strict=True):
        assert (each.remedy is not None) == (each.fits is False)
        if each.remedy is None:
            continue

        def fits(count: int, share: float, single: auditor.Settings = settings, account: Any = account) -> bool | None:
            changed = msgspec.structs.replace(account, quota_share=share)
            concurrency = concurrency_per_account(settings)[settings.account.index(account)]  # its part stays the same
            single = msgspec.structs.replace(single, account=(changed,), concurrency=concurrency)
            return plan_devices(single, {account.name: count}, before, window).fits

        share, fitting, windows = each.remedy.quota_share, each.remedy.devices, each.remedy.windows
        if share is None:
            assert fits(each.devices, 1.0) is False
        else:
            assert account.quota_share < share <= 1
            assert fits(each.devices, share) is True
            assert share <= 0.01 or fits(each.devices, round(share - 0.01, 2)) is False
        assert fits(fitting, account.quota_share) is True
        assert fits(fitting + 1, account.quota_share) is False
        if windows is None:
            assert fitting == 0
        else:
            assert fits(math.ceil(Fraction(each.devices, windows)), account.quota_share) is True
            assert fits(math.ceil(Fraction(each.devices, windows - 1)), account.quota_share) is False


def test_low_concurrency_takes_longer_at_a_measured_latency() -> None:
    settings = settings_of((10.0, 1.0), concurrency=1)
    measured = measurements({}, 0.5)
    plan = plan_devices(settings, {"a0": 100}, measured, window=60)
    assert (plan.seconds, plan.fits, plan.concurrency_advised) == (50.0, True, 5)
    assert plan_devices(settings, {"a0": 100}, None, window=60).seconds == pytest.approx(100 / 9.7, abs=0.01)
    tight = plan_devices(settings, {"a0": 100}, measured, window=20).accounts[0]
    assert tight.remedy is not None
    assert (tight.fits, tight.remedy.quota_share, tight.remedy.devices) == (False, None, 40)


@examples(deadline=None)
@given(cases())
def test_all_advice_together_makes_the_whole_plan_fit(
    case: tuple[auditor.Settings, dict[str, int], RunMeasurements | None, float],
) -> None:
    settings, devices, before, window = case
    plan = plan_devices(settings, devices, before, window)
    accounts, fewer = [], dict(devices)
    for account, each in zip(settings.account, plan.accounts, strict=True):
        if each.remedy is not None and each.remedy.quota_share is not None:
            accounts.append(msgspec.structs.replace(account, quota_share=each.remedy.quota_share))
        else:
            accounts.append(account)
            if each.remedy is not None:
                fewer[account.name] = each.remedy.devices
    followed = plan_devices(msgspec.structs.replace(settings, account=tuple(accounts)), fewer, before, window)
    unknown = any(each.fits is None for each in plan.accounts)
    assert followed.fits is (None if unknown else True)
    concurrency = followed.concurrency_advised or settings.concurrency
    assert (
        plan_devices(
            msgspec.structs.replace(settings, concurrency=concurrency, account=tuple(accounts)), fewer, before
        ).concurrency_advised
        is None
    )


@examples(deadline=None)
@given(cases())
def test_the_whole_is_the_sum_or_the_longest_of_its_accounts(
    case: tuple[auditor.Settings, dict[str, int], RunMeasurements | None, float],
) -> None:
    plan = plan_devices(*case)
    assert plan.devices == sum(case[1].values()) == sum(each.devices for each in plan.accounts)
    assert plan.calls == sum(each.calls for each in plan.accounts) >= plan.devices
    if plan.seconds is not None:
        assert plan.seconds == max(each.seconds or 0.0 for each in plan.accounts)
        assert plan.fits == (plan.seconds <= case[3])
    assert asdict(plan.planned) == {"requests": plan.calls, "seconds": plan.seconds, "in_flight": plan.in_flight}


def test_plan_sends_no_request_and_needs_no_key(tmp_path: Path) -> None:
    plain_world(30).write_fleet(tmp_path / "fleet.csv")
    table = account_table(
        "http://127.0.0.1:1/", tmp_path, calls_per_second=10, access_key_secret={"env": "NO_SUCH_VARIABLE"}
    )
    settings = settings_for(tmp_path, table)
    assert auditor.plan_audit(settings).devices == 30
    assert auditor.plan_audit(settings, limit=7, window=1).accounts[0].devices == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet.csv", "secret"]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"window": 0.0}, {"window": -1.0}, {"window": math.nan}])
def test_zero_limit_or_window_is_rejected(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"give a number of .* (1 up|above 0)"):
        auditor.plan_audit(settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path)), **wrong)


@pytest.mark.anyio
async def test_run_stores_its_plan_and_the_next_plan_uses_its_measurements(tmp_path: Path) -> None:
    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path, calls_per_second=500))
        expected = auditor.plan_audit(settings)
        result = await auditor.run_audit(settings)
    first = result.manifest
    assert first.planned == expected.planned
    assert (first.planned.requests, first.planned.seconds) == (40, round(40 / 500 / 0.97, 3))
    assert first.requests.sent == 40
    next_plan = auditor.plan_audit(settings)
    assert (expected.run, next_plan.run) == (None, result.folder.name)
    assert not next_plan.accounts[0].calls_assumed


@pytest.mark.anyio
async def test_run_is_planned_with_the_measurements_of_the_previous_run(tmp_path: Path) -> None:
    world = plain_world(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path, calls_per_second=500))
        first = await auditor.run_audit(settings, limit=10)
        write_manifest(first.folder, replace(first.manifest, rate=Rate(latency=0.5)))
        second = (await auditor.run_audit(settings)).manifest
    assert second.planned is not None
    assert (second.planned.requests, second.planned.in_flight) == (40, 250)


@pytest.mark.anyio
async def test_plan_of_a_run_survives_a_resume(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.01, 0.03)) as platform:
        settings = settings_at(tmp_path, platform)
        first = await interrupted_audit(platform, settings)
        last = await auditor.resume_audit(first.folder)
    assert last.manifest.state == "complete"
    assert first.manifest.planned is not None
    assert first.manifest.planned.requests == 60
    assert last.manifest.planned == first.manifest.planned
