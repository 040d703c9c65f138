"""Discoveries that were interrupted, killed at any step, or left with gaps, and that a resume continues."""

from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.audit.runner import resume_audit
from auditor.client.operations import QUERY_DEVICE
from auditor.models import Secret
from auditor.runs.manifest import read_manifest
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.responses import Document, RequestRejected
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import assert_complete_and_correct, plain_world, query_counts, stop_after
from tests.integration.test_audit import account_table, read_lines, settings_for
from tests.integration.test_discovery import ALL_PRODUCTS, discovery_settings

pytestmark = pytest.mark.anyio

SLOW_LATENCY = (0.01, 0.02)


def page_counts(platform: Simulator) -> Counter[tuple[str, str]]:
    """Count the requests for each page of each product, from now on."""
    counts: Counter[tuple[str, str]] = Counter()
    answer = platform._operations[QUERY_DEVICE.name]

    def counted(parameters: Any, *more: Any) -> Document:
        counts[parameters["ProductKey"], parameters["CurrentPage"]] += 1
        return answer(parameters, *more)

    platform._operations[QUERY_DEVICE.name] = counted
    return counts


async def test_interrupted_discovery_continues_and_requests_no_page_twice(tmp_path: Path) -> None:
    world = plain_world(900)
    async with Simulator(world, latency=SLOW_LATENCY, record_responses=True) as platform:
        counts = page_counts(platform)
        settings = discovery_settings(tmp_path, platform, concurrency=2)
        first = await stop_after(8, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        (facts,) = first.manifest.discovery
        assert (first.exit_code, first.manifest.state, facts.state) == (130, "partial", "pending")
        assert first.manifest.fleet.devices == 0
        assert auditor.verify_run(first.folder) == []
        assert 3 < counts.total() < 12
        result = await auditor.resume_audit(first.folder)
        assert set(query_counts(platform).values()) == {1}
    assert_complete_and_correct(world, result)
    (facts,) = result.manifest.discovery
    assert (facts.devices, facts.duplicates) == (900, 0)
    # The first page of each product is requested again at its end.
    assert {page for page, times in counts.items() if times > 1} == {(key, "1") for key in world.product_keys}


@pytest.mark.slow
async def test_run_with_resume_continues_a_discovery(tmp_path: Path) -> None:
    world = plain_world(300)
    async with Simulator(world, latency=SLOW_LATENCY) as platform:
        settings = discovery_settings(tmp_path, platform, concurrency=1)
        first = await stop_after(4, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        result = await auditor.run_audit(settings, resume=True)
    assert result.folder == first.folder
    assert_complete_and_correct(world, result)


class _KilledError(BaseException):
    """Stands for a kill: nothing of ours handles it."""


@pytest.mark.parametrize("step", ["materialize", "write_extended_fleet", "put_in_place", "sha256_of", "write_manifest"])
async def test_kill_at_any_step_of_adding_to_the_fleet_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before or after the fleet's file was replaced, before or after the manifest says so."""
    world = plain_world(120)
    async with Simulator(world, record_responses=True) as platform:
        settings = discovery_settings(tmp_path, platform)
        with monkeypatch.context() as patched:

            def killed(*_: object, **__: object) -> None:
                raise _KilledError

            modules = {"write_manifest": ["engine.run_state", "audit.session"], "materialize": ["fleet.crawler"]}
            for module in modules.get(step, ["audit.device_source"]):
                patched.setattr(f"auditor.{module}.{step}", killed)
            with pytest.raises((_KilledError, BaseExceptionGroup)) as caught:
                await auditor.run_audit(settings)
            assert "_KilledError" in repr(caught.value)
        (folder,) = (tmp_path / "audits").iterdir()
        manifest = read_manifest(folder)
        assert [each.state for each in manifest.discovery] == ["pending"]
        counts = page_counts(platform)
        result = await resume_audit(folder)
        assert counts.total() == 0  # every page was there
        assert set(query_counts(platform).values()) == {1}
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_product_that_could_not_be_listed_is_listed_by_a_resume(
    tmp_path: Path,
) -> None:
    world = plain_world(400)
    sick = world.product_keys[1]
    async with Simulator(world, record_responses=True) as platform:
        answer = platform._operations[QUERY_DEVICE.name]

        def broken(parameters: Any, *more: Any) -> Document:
            if parameters["ProductKey"] == sick and parameters["CurrentPage"] == "2":
                raise RequestRejected("iot.system.Odd", "Something is odd.")
            return answer(parameters, *more)

        platform._operations[QUERY_DEVICE.name] = broken
        first = await auditor.run_audit(discovery_settings(tmp_path, platform, max_attempts=2))
        (facts,) = first.manifest.discovery
        assert (first.exit_code, first.manifest.state, facts.state) == (1, "partial", "partial")
        assert [(gap.product_key, gap.listed, str(gap.reason)) for gap in facts.gaps] == [
            (sick, 50, "iot.system.Odd: Something is odd.")
        ]
        assert first.manifest.devices.unanswered == 0
        again = await auditor.run_audit(discovery_settings(tmp_path, platform, max_attempts=2), resume=True)
        assert again.folder != first.folder  # it was done, as far as it could be: that is a new one
        platform._operations[QUERY_DEVICE.name] = answer
        before = query_counts(platform)
        result = await auditor.resume_audit(first.folder)
        assert query_counts(platform).total() - before.total() == 400 - first.manifest.fleet.devices
    assert_complete_and_correct(world, result)


@pytest.mark.slow
async def test_fleet_of_a_denied_account_is_discovered_by_a_resume(tmp_path: Path) -> None:
    worlds = [plain_world(60, seed=1), plain_world(80, seed=2)]
    accounts = [SimulatedAccount(f"key-{n}", Secret("s"), world=world) for n, world in enumerate(worlds)]
    (tmp_path / "s").write_text("s")
    async with Simulator(worlds[0], accounts=accounts, record_responses=True) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=f"a{n}", access_key_id=f"key-{n}", fleet=ALL_PRODUCTS)
            | {"access_key_secret": {"file": str(tmp_path / name)}}
            for n, name in enumerate(("s", "wrong"))
        ]
        (tmp_path / "wrong").write_text("another one")
        first = await auditor.run_audit(settings_for(tmp_path, *tables))
        assert (first.exit_code, first.manifest.state, first.manifest.devices.ok) == (3, "aborted", 60)
        assert 'account "a1": its devices cannot be listed' in str(first.manifest.error)
        assert [each.state for each in first.manifest.discovery] == ["complete", "pending"]
        assert auditor.verify_run(first.folder) == []
        (tmp_path / "wrong").write_text("s")
        result = await auditor.resume_audit(first.folder)
        assert set(query_counts(platform).values()) == {1}
    assert (result.exit_code, result.manifest.state, result.manifest.devices.ok) == (0, "complete", 140)
    accounts_in_order = [line["account"] for line in read_lines(result.folder / "devices.jsonl")]
    assert Counter(accounts_in_order) == {"a0": 60, "a1": 80}


async def test_account_with_a_fleet_file_does_not_wait_for_a_discovery(tmp_path: Path) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    seen: list[tuple[int, bool]] = []

    def watch(progress: auditor.Progress) -> None:
        seen.append((progress.devices.ok, progress.discovery is not None))

    async with (
        Simulator(world, latency=SLOW_LATENCY) as quick,
        Simulator(World(800, missing=0), latency=(0.1, 0.1)) as slow,
    ):
        tables = [
            account_table(
                slow.endpoint, tmp_path, name="slow", fleet=ALL_PRODUCTS, quotas={"QueryDevice": 8}, calls_per_second=50
            ),
            account_table(quick.endpoint, tmp_path, name="quick"),
        ]
        stop = auditor.StopToken()
        async with anyio.create_task_group() as group:

            async def request_stop() -> None:
                while not any(ok == 60 for ok, _ in seen):  # noqa: ASYNC110  the audit has no event
                    await anyio.sleep(0.05)
                stop.request("seen enough")

            group.start_soon(request_stop)
            result = await auditor.run_audit(settings_for(tmp_path, *tables), on_progress=watch, stop=stop)
    assert (60, True) in seen
    assert result.manifest.devices.ok >= 60
    assert auditor.verify_run(result.folder) == []
