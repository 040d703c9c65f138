"""Timed audits wait for a platform that is down, until their end; and an outage that lasts longer is not hidden."""

import itertools
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

import auditor
from auditor.audit.silence import find_known_devices
from auditor.resilience import circuit_breaker, retry
from auditor.resilience.retry import Backoff
from auditor.runs.manifest import read_manifest
from auditor.simulator.faults import FaultKind
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.responses import RequestRejected
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World
from tests.integration.test_audit import account_table, assert_matches, settings_for

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("short_delays")]

WORLD = World(120, seed=3, large=0)
GIVE_UP_AFTER = 0.5


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attempts are used up in tenths of a second, and an account that was answered is stopped after a second."""
    monkeypatch.setattr(circuit_breaker, "OPEN_AFTER_SECONDS", 0.1)
    monkeypatch.setattr("auditor.engine.account_session.MAX_FAILING_SECONDS", 1.0)
    monkeypatch.setattr(retry, "PROBE_BACKOFF", Backoff(initial_delay=0.1, max_delay=0.2))
    monkeypatch.setattr(Backoff, "delay", lambda _self, _failures, draw: 0.1 * draw)


def simulator(port: int = 0) -> Simulator:
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 300.0)
    return Simulator(WORLD, accounts=[account], latency=(0.0, 0.02), port=port)


def nightly_settings(folder: Path, platform: Simulator, **account: object) -> auditor.Settings:
    WORLD.write_fleet(folder / "fleet.csv")
    table = account_table(platform.endpoint, folder, calls_per_second=300.0, **account)
    return settings_for(folder, table, max_attempts=6, timeout=0.3, concurrency=8, give_up_after=GIVE_UP_AFTER)


async def end_outage(platform: Simulator, seconds: float) -> None:
    await anyio.sleep(seconds)
    platform.outage = None


def newest_manifest(folder: Path) -> auditor.Manifest:
    return read_manifest(max((folder / "audits").iterdir()))


@pytest.mark.parametrize(
    ("fleet", "kind"), [("listed", "unavailable"), ("listed", "silence"), ("filed", "unavailable"), ("filed", "reset")]
)
async def test_an_account_that_was_answered_in_an_earlier_run_is_waited_for(
    tmp_path: Path, fleet: str, kind: FaultKind
) -> None:
    async with simulator() as platform:
        source = {"fleet": {"products": "all"}} if fleet == "listed" else {}
        settings = nightly_settings(tmp_path, platform, **source)
        assert (await auditor.run_audit(settings)).exit_code == 0
        platform.outage = kind
        async with anyio.create_task_group() as group:
            group.start_soon(end_outage, platform, 1.3)
            result = await auditor.run_audit(settings, max_seconds=60)
    assert (result.manifest.state, result.manifest.carried, result.manifest.problems) == ("complete", 0, ())
    assert_matches([device for device in WORLD if device.exists or not source], result.folder)


async def test_an_unreachable_platform_is_waited_for_and_the_manifest_says_why(tmp_path: Path) -> None:
    async with simulator() as platform:
        settings, port = nightly_settings(tmp_path, platform), platform.port
        await auditor.run_audit(settings)
    results: list[auditor.AuditResult] = []
    async with anyio.create_task_group() as group:

        async def audit() -> None:
            results.append(await auditor.run_audit(settings, max_seconds=60))

        group.start_soon(audit)
        await anyio.sleep(1.5)
        (problem,) = newest_manifest(tmp_path).problems
        async with simulator(port):
            while not results:  # noqa: ASYNC110  the audit has no event
                await anyio.sleep(0.02)
    assert problem.startswith('account "eu": ')
    assert "127.0.0.1" in problem
    assert results[0].manifest.state == "complete"


async def test_an_account_without_an_earlier_answer_is_given_up_soon(tmp_path: Path) -> None:
    async with simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
    result = await auditor.run_audit(settings, max_seconds=600)
    assert result.exit_code == 3
    assert f"no usable answer for {GIVE_UP_AFTER:g} s" in str(result.manifest.error)


async def test_without_a_deadline_an_account_is_given_up_soon(tmp_path: Path) -> None:
    async with simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
        await auditor.run_audit(settings)
    result = await auditor.run_audit(settings)
    assert result.exit_code == 3
    assert f"no usable answer for {GIVE_UP_AFTER:g} s" in str(result.manifest.error)


@pytest.mark.parametrize("answers", [0, 40])
async def test_an_outage_until_the_deadline_is_an_error_and_nothing_is_carried(tmp_path: Path, answers: int) -> None:
    async with simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
        await auditor.run_audit(settings)
        before = platform.counts.answered

        async def begin_outage() -> None:
            while platform.counts.answered < before + answers:  # noqa: ASYNC110  the platform has no event
                await anyio.sleep(0.002)
            platform.outage = "unavailable"

        async with anyio.create_task_group() as group:
            if answers:
                group.start_soon(begin_outage)
            else:
                platform.outage = "unavailable"
            result = await auditor.run_audit(settings, max_seconds=3)
        manifest = result.manifest
        assert (result.exit_code, manifest.state, manifest.carried) == (3, "aborted", 0)
        assert manifest.exit_reason is not None
        assert manifest.exit_reason.code == "unreachable_account"
        assert "no usable answer" in manifest.exit_reason.message
        assert manifest.devices.failed == 0
        assert manifest.devices.pending > 0
        platform.outage = None
        resumed = await auditor.run_audit(settings, resume=True, max_seconds=60)
    assert resumed.manifest.state == "complete"
    assert resumed.folder == result.folder
    assert_matches(WORLD, resumed.folder)


class SelectiveSimulator(Simulator):
    """Rejects requests for module versions, or for lists, that a test selects."""

    reject: Callable[[Mapping[str, str]], RequestRejected | None] = staticmethod(lambda _: None)

    def _answer(self, account: SimulatedAccount, parameters: Mapping[str, str], request_id: str) -> Any:
        if (rejected := self.reject(parameters)) is not None:
            raise rejected
        return super()._answer(account, parameters, request_id)


def failing() -> RequestRejected:
    return RequestRejected("iot.system.SystemException", "A system exception occurred.")


def after_answers(count: int, error: RequestRejected) -> Callable[[Mapping[str, str]], RequestRejected | None]:
    """Return what rejects every request but the first ones."""
    numbers = itertools.count(1)
    return lambda _parameters: error if next(numbers) > count else None


def selective_simulator() -> SelectiveSimulator:
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, 300.0)
    return SelectiveSimulator(WORLD, accounts=[account], latency=(0.0, 0.02))


def is_about(parameters: Mapping[str, str], devices: Iterable[SimulatedDevice]) -> bool:
    names = {each.device_name for each in devices} | {each.iot_id for each in devices}
    return bool({parameters.get("DeviceName"), parameters.get("IotId")} & names)


@pytest.mark.parametrize("part", ["device", "product"])
async def test_the_first_device_or_product_alone_does_not_hold_up_a_timed_run(tmp_path: Path, part: str) -> None:
    devices = list(WORLD)
    failed = [each for each in devices if each.product_key == devices[0].product_key]
    failed = failed if part == "product" else failed[:1]
    async with selective_simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
        await auditor.run_audit(settings)
        platform.reject = lambda parameters: failing() if is_about(parameters, failed) else None
        result = await auditor.run_audit(settings, max_seconds=30)
    assert result.manifest.state == "partial"
    assert (result.manifest.devices.failed, result.manifest.devices.pending) == (len(failed), 0)


async def test_a_list_that_fails_alone_does_not_hold_up_a_timed_run(tmp_path: Path) -> None:
    async with selective_simulator() as platform:
        settings = nightly_settings(tmp_path, platform, fleet={"products": "all"})
        await auditor.run_audit(settings)
        product = next(iter(WORLD)).product_key

        def reject(parameters: Mapping[str, str]) -> RequestRejected | None:
            is_list = parameters["Action"].startswith("QueryDevice") and parameters.get("ProductKey") == product
            return failing() if is_list else None

        platform.reject = reject
        result = await auditor.run_audit(settings, max_seconds=30)
    assert (result.exit_code, result.manifest.devices.pending) == (1, 0)
    assert result.manifest.discovery[0].state == "partial"


async def test_devices_that_are_denied_after_an_outage_do_not_hold_up_a_run(tmp_path: Path) -> None:
    async with selective_simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
        await auditor.run_audit(settings)
        second = await auditor.run_audit(settings)
        probed = {each.device_name for each in find_known_devices(second.folder, second.manifest)["eu"]}
        denied = [each for each in WORLD if each.device_name in probed]

        def reject(parameters: Mapping[str, str]) -> RequestRejected | None:
            is_denied = is_about(parameters, denied)
            return RequestRejected("iot.common.AuthActionPermissionDeny", "denied", 403) if is_denied else None

        platform.reject, platform.outage = reject, "unavailable"
        async with anyio.create_task_group() as group:
            group.start_soon(end_outage, platform, 1.3)
            result = await auditor.run_audit(settings, max_seconds=30)
    assert (len(denied), result.manifest.devices.failed, result.manifest.devices.pending) == (5, 5, 0)


async def test_throttling_until_the_deadline_is_an_outage(tmp_path: Path) -> None:
    async with selective_simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
        await auditor.run_audit(settings)
        platform.reject = after_answers(40, RequestRejected("Throttling.User", "slow down", 400))
        result = await auditor.run_audit(settings, max_seconds=5)
    assert (result.exit_code, result.manifest.carried) == (3, 0)
    assert "Throttling.User" in str(result.manifest.error)


async def test_an_outage_that_begins_shortly_before_the_deadline_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("auditor.engine.account_session.MAX_FAILING_SECONDS", 30.0)
    async with selective_simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
        await auditor.run_audit(settings)
        platform.reject = after_answers(40, failing())
        result = await auditor.run_audit(settings, max_seconds=3)
    assert result.exit_code == 0
    assert result.manifest.carried > 0


async def test_an_account_with_another_endpoint_is_another_one(tmp_path: Path) -> None:
    async with simulator() as platform:
        settings = nightly_settings(tmp_path, platform)
        await auditor.run_audit(settings)
        moved = msgspec.structs.replace(settings.account[0], endpoint="http://127.0.0.1:1/")
    result = await auditor.run_audit(msgspec.structs.replace(settings, account=(moved,)), max_seconds=600)
    assert result.exit_code == 3
    assert f"no usable answer for {GIVE_UP_AFTER:g} s" in str(result.manifest.error)
