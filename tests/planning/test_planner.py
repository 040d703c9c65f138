"""Plans: figures that follow from counts and quotas, and advice that holds when it is followed."""

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
from auditor.engine.allocation import workers_of
from auditor.errors import SettingsError, UsageError
from auditor.planning.capacity import MOST_AT_ONCE, plan_of
from auditor.planning.measurements import Asked, Experience
from auditor.runs.manifest import Rate, write_manifest
from auditor.simulator.server import Simulator
from tests.integration.audits import begun, plain, settings_at
from tests.integration.test_audit import account_table, settings_for

HOUR = 3600.0


def settings_of(*quotas: tuple[object, float], at_once: int = 64) -> auditor.Settings:
    """Settings for an account of each quota and share, named a0, a1 and so on."""
    accounts = [
        {
            "name": f"a{number}",
            "endpoint": "https://example.com/",
            "access_key_id": {"env": f"NO_SUCH_VARIABLE_{number}"},
            "access_key_secret": {"env": "NO_SUCH_VARIABLE"},
            "per_second": quota,
            "share": share,
        }
        for number, (quota, share) in enumerate(quotas)
    ]
    return auditor.settings_from({"at_once": at_once, "account": accounts})


def known(asked: Mapping[str, Asked], latency: float | None = None) -> Experience:
    return Experience(Path("audits/20261122T020000Z-audit"), asked, latency)


def test_without_a_run_one_call_a_device_and_the_latency_are_assumed() -> None:
    plan = plan_of(settings_of((10, 0.5)), {"a0": 970}, None)
    (account,) = plan.accounts
    assert (plan.run, plan.devices, plan.calls, plan.latency, plan.latency_assumed) == (None, 970, 970, 0.3, True)
    assert (account.calls_each, account.calls_assumed, account.per_second) == (1.0, True, 5.0)
    assert plan.seconds == account.seconds == 200.0  # at 97% of 5 calls a second
    assert plan.in_flight == account.in_flight == 2
    assert (plan.window, plan.fits, account.fits, account.remedy) == (None, None, None, None)


def test_calls_and_latency_are_those_of_the_run_that_tells() -> None:
    before = known({"a0": Asked(3, 4)}, latency=0.05)
    plan = plan_of(settings_of((10, 1), (100, 1)), {"a0": 10, "a1": 10}, before)
    assert plan.run == "20261122T020000Z-audit"
    assert [(each.calls, each.calls_assumed, each.in_flight) for each in plan.accounts] == [
        (14, False, 1),
        (10, True, 5),
    ]
    assert (plan.calls, plan.in_flight, plan.latency, plan.latency_assumed) == (24, 6, 0.05, False)


def test_accounts_are_audited_side_by_side_so_the_longest_counts() -> None:
    plan = plan_of(settings_of((10, 1), (1, 1)), {"a0": 970, "a1": 970}, None, window=500)
    assert [each.seconds for each in plan.accounts] == [100.0, 1000.0]
    assert plan.seconds == 1000.0
    assert [each.fits for each in plan.accounts] == [True, False]
    assert plan.fits is False


@pytest.mark.parametrize("quota", ["unlimited", "auto"])
def test_the_time_of_an_account_without_a_known_quota_is_unknown(quota: str) -> None:
    settings = settings_of((10, 1), (quota, 1))
    plan = plan_of(settings, {"a0": 97, "a1": 97}, None, window=10)
    assert [each.seconds for each in plan.accounts] == [10.0, None]
    assert [each.fits for each in plan.accounts] == [True, None]
    assert (plan.seconds, plan.in_flight, plan.fits) == (None, None, None)
    assert plan_of(settings, {"a0": 97, "a1": 97}, None, window=9).fits is False
    assert plan_of(settings, {"a0": 97}, None, window=10).fits is True  # nobody is asked there


@pytest.mark.parametrize(
    ("at_once", "quotas", "advised"),
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
def test_at_once_should_be_enough_for_each_accounts_part_of_it(
    at_once: int, quotas: list[tuple[object, float]], advised: int | None
) -> None:
    settings = settings_of(*quotas, at_once=at_once)
    assert plan_of(settings, {"a0": 9, "a1": 9}, None).at_once_advised == advised


def test_the_most_that_at_once_can_be_is_what_the_settings_allow() -> None:
    assert settings_of((1, 1), at_once=MOST_AT_ONCE).at_once == MOST_AT_ONCE
    with pytest.raises(SettingsError, match="at_once"):
        settings_of((1, 1), at_once=MOST_AT_ONCE + 1)


def test_where_a_greater_share_is_enough_it_is_advised() -> None:
    plan = plan_of(settings_of((10, 0.5)), {"a0": 194_000}, None, window=8 * HOUR)
    remedy = plan.accounts[0].remedy
    assert remedy is not None
    assert remedy.share == 0.7  # 194,000 calls at 9.7 a second take 20,000 s, of 28,800: 0.694 would do
    assert (remedy.devices, remedy.windows) == (139_680, 2)


def test_where_the_whole_quota_is_too_little_a_part_or_more_accounts_are_advised() -> None:
    plan = plan_of(settings_of((10, 1)), {"a0": 1_000_000}, None, window=8 * HOUR)
    remedy = plan.accounts[0].remedy
    assert remedy is not None
    assert (remedy.share, remedy.devices, remedy.windows) == (None, 279_360, 4)


def test_a_window_in_which_not_one_device_fits_has_no_number_of_windows() -> None:
    plan = plan_of(settings_of((0.01, 1)), {"a0": 5}, None, window=60)
    remedy = plan.accounts[0].remedy
    assert remedy is not None
    assert (remedy.share, remedy.devices, remedy.windows) == (None, 0, None)


shares = st.integers(1, 1000).map(lambda thousandths: thousandths / 1000)
quotas = st.lists(
    st.tuples(st.floats(0.001, 1_000_000) | st.sampled_from([1, 10, 50, "unlimited"]), shares), min_size=1, max_size=4
)
counts = st.integers(0, 5_000_000)
asked = st.none() | st.integers(1, 10**6).flatmap(
    lambda devices: st.builds(Asked, st.just(devices), st.integers(devices, 9 * devices))
)


@st.composite
def cases(draw: st.DrawFn) -> tuple[auditor.Settings, dict[str, int], Experience | None, float]:
    settings = settings_of(*draw(quotas), at_once=draw(st.integers(1, 200)))
    names = [account.name for account in settings.account]
    told = {name: found for name in names if (found := draw(asked)) is not None}
    before = known(told, draw(st.none() | st.floats(0.001, 30))) if told else None
    devices = {name: draw(counts) for name in names}
    seconds = plan_of(settings, devices, before).seconds
    near = [] if seconds is None else [st.floats(0.3, 1.1).map(lambda part: max(1.0, part * seconds))]
    return settings, devices, before, draw(st.one_of(st.floats(1, 100_000), *near))


@examples(deadline=None)
@given(cases())
def test_advice_that_is_followed_makes_it_fit_and_less_would_not(
    case: tuple[auditor.Settings, dict[str, int], Experience | None, float],
) -> None:
    settings, devices, before, window = case
    plan = plan_of(settings, devices, before, window)
    for account, each in zip(settings.account, plan.accounts, strict=True):
        assert (each.remedy is not None) == (each.fits is False)
        if each.remedy is None:
            continue

        def fits(some: int, share: float, alone: auditor.Settings = settings, account: Any = account) -> bool | None:
            changed = msgspec.structs.replace(account, share=share)
            at_once = workers_of(settings)[settings.account.index(account)]  # its part stays the same
            alone = msgspec.structs.replace(alone, account=(changed,), at_once=at_once)
            return plan_of(alone, {account.name: some}, before, window).fits

        share, fitting, windows = each.remedy.share, each.remedy.devices, each.remedy.windows
        if share is None:
            assert fits(each.devices, 1.0) is False
        else:
            assert account.share < share <= 1
            assert fits(each.devices, share) is True
            assert share <= 0.01 or fits(each.devices, round(share - 0.01, 2)) is False
        assert fits(fitting, account.share) is True
        assert fits(fitting + 1, account.share) is False
        if windows is None:
            assert fitting == 0
        else:
            assert fits(math.ceil(Fraction(each.devices, windows)), account.share) is True
            assert fits(math.ceil(Fraction(each.devices, windows - 1)), account.share) is False


def test_too_few_requests_in_flight_take_longer_if_it_is_known_how_long_an_answer_takes() -> None:
    settings = settings_of((10.0, 1.0), at_once=1)
    told = known({}, 0.5)
    plan = plan_of(settings, {"a0": 100}, told, window=60)
    assert (plan.seconds, plan.fits, plan.at_once_advised) == (50.0, True, 5)
    assert plan_of(settings, {"a0": 100}, None, window=60).seconds == pytest.approx(100 / 9.7, abs=0.01)
    tight = plan_of(settings, {"a0": 100}, told, window=20).accounts[0]
    assert tight.remedy is not None
    assert (tight.fits, tight.remedy.share, tight.remedy.devices) == (False, None, 40)


@examples(deadline=None)
@given(cases())
def test_all_advice_together_makes_the_whole_plan_fit(
    case: tuple[auditor.Settings, dict[str, int], Experience | None, float],
) -> None:
    settings, devices, before, window = case
    plan = plan_of(settings, devices, before, window)
    accounts, fewer = [], dict(devices)
    for account, each in zip(settings.account, plan.accounts, strict=True):
        if each.remedy is not None and each.remedy.share is not None:
            accounts.append(msgspec.structs.replace(account, share=each.remedy.share))
        else:
            accounts.append(account)
            if each.remedy is not None:
                fewer[account.name] = each.remedy.devices
    followed = plan_of(msgspec.structs.replace(settings, account=tuple(accounts)), fewer, before, window)
    unknown = any(each.fits is None for each in plan.accounts)
    assert followed.fits is (None if unknown else True)
    at_once = followed.at_once_advised or settings.at_once
    assert (
        plan_of(
            msgspec.structs.replace(settings, at_once=at_once, account=tuple(accounts)), fewer, before
        ).at_once_advised
        is None
    )


@examples(deadline=None)
@given(cases())
def test_the_whole_is_the_sum_or_the_longest_of_its_accounts(
    case: tuple[auditor.Settings, dict[str, int], Experience | None, float],
) -> None:
    plan = plan_of(*case)
    assert plan.devices == sum(case[1].values()) == sum(each.devices for each in plan.accounts)
    assert plan.calls == sum(each.calls for each in plan.accounts) >= plan.devices
    if plan.seconds is not None:
        assert plan.seconds == max(each.seconds or 0.0 for each in plan.accounts)
        assert plan.fits == (plan.seconds <= case[3])
    assert asdict(plan.planned) == {"requests": plan.calls, "seconds": plan.seconds, "in_flight": plan.in_flight}


def test_a_plan_reads_the_fleet_and_neither_asks_nor_needs_a_key(tmp_path: Path) -> None:
    plain(30).write_fleet(tmp_path / "fleet.csv")
    table = account_table("http://127.0.0.1:1/", tmp_path, per_second=10, access_key_secret={"env": "NO_SUCH_VARIABLE"})
    settings = settings_for(tmp_path, table)
    assert auditor.plan_audit(settings).devices == 30
    assert auditor.plan_audit(settings, limit=7, window=1).accounts[0].devices == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fleet.csv", "secret"]


@pytest.mark.parametrize("wrong", [{"limit": 0}, {"window": 0.0}, {"window": -1.0}, {"window": math.nan}])
def test_a_limit_or_a_window_of_nothing_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"give a number of .* (1 up|above 0)"):
        auditor.plan_audit(settings_for(tmp_path, account_table("http://127.0.0.1:1/", tmp_path)), **wrong)


@pytest.mark.anyio
async def test_a_run_keeps_what_was_planned_and_the_next_plan_learns_from_it(tmp_path: Path) -> None:
    world = plain(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path, per_second=500))
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
async def test_a_run_plans_with_the_run_before_it(tmp_path: Path) -> None:
    world = plain(40)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path, per_second=500))
        first = await auditor.run_audit(settings, limit=10)
        write_manifest(first.folder, replace(first.manifest, rate=Rate(latency=0.5)))
        second = (await auditor.run_audit(settings)).manifest
    assert second.planned is not None
    assert (second.planned.requests, second.planned.in_flight) == (40, 250)


@pytest.mark.anyio
async def test_what_was_planned_stays_through_a_resume(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.01, 0.03)) as platform:
        settings = settings_at(tmp_path, platform)
        first = await begun(platform, settings)
        last = await auditor.resume_audit(first.folder)
    assert last.manifest.state == "complete"
    assert first.manifest.planned is not None
    assert first.manifest.planned.requests == 60
    assert last.manifest.planned == first.manifest.planned
