"""An account that answers nothing useful, as with a wrong region: no success, and nothing to carry."""

from pathlib import Path

import orjson
import pytest

import auditor
from auditor.audit.preflight import preflight
from auditor.hooks.payload import build_payload
from auditor.hooks.prometheus import render_metrics
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.integration.test_audit import account_table, settings_for
from tests.integration.test_resume_failures import fail_devices

pytestmark = pytest.mark.anyio

DEVICES = 30


def world_of(*, missing: float = 0.0, silent: float = 0.0) -> World:
    return World(DEVICES, missing=missing, silent=silent, inactive=0, large=0)


async def audit(platform: Simulator, folder: Path, **changes: object) -> auditor.AuditResult:
    return await auditor.run_audit(settings_for(folder, account_table(platform.endpoint, folder), **changes))


@pytest.mark.slow
async def test_an_account_without_any_device_is_no_success_and_is_never_carried(tmp_path: Path) -> None:
    world_of().write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world_of(missing=1.0)) as wrong, Simulator(world_of()) as right:
        result = await audit(wrong, tmp_path)
        assert (result.exit_code, result.manifest.state) == (1, "partial")
        assert "instance_id" in str(result.manifest.error)
        stored = orjson.loads((result.folder / "run.json").read_bytes())
        assert stored["silent"] == [{"account": "eu", "reason": "not_found", "devices": DEVICES}]
        with auditor.Run(result.folder) as run:
            assert [warning.kind for warning in run.warnings] == ["silent"]
        metrics = render_metrics(result.folder).decode()
        assert 'auditor_run_warnings{kind="silent",run="audit"} 1.0' in metrics
        assert "auditor_last_success_timestamp_seconds{" not in metrics
        payload = build_payload(result.folder, exit_code=1)
        assert payload.has_problems
        assert "none of 30 queried devices exists" in payload.message.render()
        again = await auditor.resume_audit(
            result.folder, settings=settings_for(tmp_path, account_table(wrong.endpoint, tmp_path))
        )
        assert again.exit_code == 1
        following = await audit(right, tmp_path, since="last")
    assert (following.exit_code, following.manifest.carried, following.manifest.devices.ok) == (0, 0, DEVICES)


@pytest.mark.slow
async def test_of_two_accounts_only_the_silent_one_is_not_carried(tmp_path: Path) -> None:
    world_of().write_fleet(tmp_path / "fleet.csv")
    other = SimulatedAccount("other-key", DEFAULT_ACCOUNT.secret)
    async with (
        Simulator(world_of()) as healthy,
        Simulator(world_of(silent=1.0), accounts=[other]) as quiet,
        Simulator(world_of(), accounts=[other]) as mended,
    ):

        def settings(second: Simulator, **changes: object) -> auditor.Settings:
            tables = (
                account_table(healthy.endpoint, tmp_path),
                account_table(second.endpoint, tmp_path, name="us", access_key_id="other-key"),
            )
            return settings_for(tmp_path, *tables, **changes)

        first = await auditor.run_audit(settings(mended))
        assert (first.exit_code, first.manifest.silent) == (0, ())
        second = await auditor.run_audit(settings(quiet))
        assert second.exit_code == 1
        assert [(each.account, each.reason) for each in second.manifest.silent] == [("us", "empty")]
        third = await auditor.run_audit(settings(mended, since="last"))
    assert third.exit_code == 0
    assert third.manifest.selection is not None
    carried = {each.account: each.carried for each in third.manifest.selection.accounts}
    assert carried["eu"] > 0
    assert carried["us"] == 0
    assert third.manifest.devices.ok == 2 * DEVICES


@pytest.mark.parametrize(("missing", "problem"), [(1.0, True), (0.5, False), (0.0, False)])
async def test_check_queries_more_devices_until_one_exists(tmp_path: Path, missing: float, *, problem: bool) -> None:
    world_of().write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world_of(missing=missing)) as platform:
        (check,) = await preflight(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)))
        assert platform.counts.received <= 10
    assert (check.problem is not None) == problem
    assert not problem or "region_id, instance_id" in str(check.problem)


@pytest.mark.parametrize(("silent", "problem"), [(1.0, True), (0.5, False)])
async def test_check_compares_a_device_without_modules_with_devices_that_had_some(
    tmp_path: Path, silent: float, *, problem: bool
) -> None:
    world_of().write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world_of(silent=silent)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        assert [check.problem for check in await preflight(settings)] == [None]  # nothing is known of before
        async with Simulator(world_of()) as before:
            assert (await audit(before, tmp_path)).exit_code == 0
        (check,) = await preflight(settings)
    assert (check.problem is not None) == problem
    assert not problem or "reports a module, and some did before" in str(check.problem)


@pytest.mark.parametrize(("failing", "problem"), [(1, False), (DEVICES, True)])
async def test_check_passes_over_a_device_that_fails_but_not_over_many(
    tmp_path: Path, failing: int, *, problem: bool
) -> None:
    world = world_of()
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        fail_devices(platform, world, set(range(failing)), "iot.common.InvalidPageParams")
        (check,) = await preflight(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)))
    assert check.result == "failed: iot.common.InvalidPageParams"
    assert (check.problem is not None) == problem
    assert not problem or "none of 3 queried devices has a result: iot.common.InvalidPageParams" in str(check.problem)


@pytest.mark.parametrize("wrong", [world_of(silent=1.0), world_of(missing=1.0)], ids=["empty", "not_found"])
@pytest.mark.parametrize(("max_calls", "runs"), [(12, 1), (3, 2)])
@pytest.mark.slow
async def test_a_budget_does_not_hide_silence(tmp_path: Path, wrong: World, max_calls: int, runs: int) -> None:
    world_of().write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world_of()) as right, Simulator(wrong) as platform:
        assert (await audit(right, tmp_path)).exit_code == 0
        codes = [(await audit(platform, tmp_path, max_calls=max_calls)).exit_code for _ in range(runs)]
        assert codes == [0] * (runs - 1) + [1]
        following = await audit(right, tmp_path, max_calls=max_calls)
    assert (following.exit_code, following.manifest.silent) == (0, ())
