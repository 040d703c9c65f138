"""Listings that were ended early, killed at any of their steps, or left with products unlisted: they are gone on with."""

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
from auditor.simulator.responses import Document, Refused
from auditor.simulator.server import Simulator
from auditor.simulator.world import World
from tests.integration.audits import asked, assert_complete_and_true, ended_after, plain
from tests.integration.test_audit import account_table, lines_of, settings_for
from tests.integration.test_discovery import ALL, listed

pytestmark = pytest.mark.anyio

SLOW = (0.01, 0.02)


def pages_asked(platform: Simulator) -> Counter[tuple[str, str]]:
    """How often each page of each product was asked for, from now on."""
    counts: Counter[tuple[str, str]] = Counter()
    answer = platform._operations[QUERY_DEVICE.name]

    def counted(parameters: Any, *more: Any) -> Document:
        counts[parameters["ProductKey"], parameters["CurrentPage"]] += 1
        return answer(parameters, *more)

    platform._operations[QUERY_DEVICE.name] = counted
    return counts


async def test_an_ended_listing_is_gone_on_with_and_no_page_is_asked_for_twice(tmp_path: Path) -> None:
    world = plain(900)
    async with Simulator(world, latency=SLOW, record_answers=True) as platform:
        counts = pages_asked(platform)
        settings = listed(tmp_path, platform, at_once=2)
        first = await ended_after(8, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        (facts,) = first.manifest.listings
        assert (first.exit_code, first.manifest.state, facts.state) == (130, "partial", "pending")
        assert first.manifest.fleet.devices == 0
        assert auditor.verify(first.folder) == []
        assert 3 < counts.total() < 12
        result = await auditor.resume_audit(first.folder)
        assert set(asked(platform).values()) == {1}
    assert_complete_and_true(world, result)
    (facts,) = result.manifest.listings
    assert (facts.devices, facts.repeats) == (900, 0)
    # The first page of each product is looked at once more at its end.
    assert {page for page, times in counts.items() if times > 1} == {(key, "1") for key in world.product_keys}


async def test_run_resume_goes_on_with_a_listing_too(tmp_path: Path) -> None:
    world = plain(300)
    async with Simulator(world, latency=SLOW) as platform:
        settings = listed(tmp_path, platform, at_once=1)
        first = await ended_after(4, platform, lambda stop: auditor.run_audit(settings, stop=stop))
        result = await auditor.run_audit(settings, resume=True)
    assert result.folder == first.folder
    assert_complete_and_true(world, result)


class _KilledError(BaseException):
    """Stands for a kill: nothing of ours handles it."""


@pytest.mark.parametrize("step", ["write_listed", "write_grown", "put_in_place", "sha256_of", "write_manifest"])
async def test_a_kill_at_any_step_of_growing_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Before or after the fleet's file was replaced, before or after the manifest says so."""
    world = plain(120)
    async with Simulator(world, record_answers=True) as platform:
        settings = listed(tmp_path, platform)
        with monkeypatch.context() as patched:

            def killed(*_: object, **__: object) -> None:
                raise _KilledError

            modules = {"write_manifest": "audit.session", "write_listed": "fleet.crawler"}
            patched.setattr(f"auditor.{modules.get(step, 'audit.device_source')}.{step}", killed)
            with pytest.raises((_KilledError, BaseExceptionGroup)) as caught:
                await auditor.run_audit(settings)
            assert "_KilledError" in repr(caught.value)
        (folder,) = (tmp_path / "audits").iterdir()
        manifest = read_manifest(folder)
        assert [each.state for each in manifest.listings] == ["pending"]
        counts = pages_asked(platform)
        result = await resume_audit(folder)
        assert counts.total() == 0  # every page was there
        assert set(asked(platform).values()) == {1}
    assert_complete_and_true(world, result)


async def test_a_product_that_could_not_be_listed_is_listed_by_a_resume_and_its_devices_are_asked(
    tmp_path: Path,
) -> None:
    world = plain(400)
    sick = world.product_keys[1]
    async with Simulator(world, record_answers=True) as platform:
        answer = platform._operations[QUERY_DEVICE.name]

        def broken(parameters: Any, *more: Any) -> Document:
            if parameters["ProductKey"] == sick and parameters["CurrentPage"] == "2":
                raise Refused("iot.system.Odd", "Something is odd.")
            return answer(parameters, *more)

        platform._operations[QUERY_DEVICE.name] = broken
        first = await auditor.run_audit(listed(tmp_path, platform, attempts=2))
        (facts,) = first.manifest.listings
        assert (first.exit_code, first.manifest.state, facts.state) == (1, "partial", "partial")
        assert [(gap.product_key, gap.listed, str(gap.reason)) for gap in facts.gaps] == [
            (sick, 50, "iot.system.Odd: Something is odd.")
        ]
        assert first.manifest.devices.unanswered == 0
        again = await auditor.run_audit(listed(tmp_path, platform, attempts=2), resume=True)
        assert again.folder != first.folder  # it was done, as far as it could be: that is a new one
        platform._operations[QUERY_DEVICE.name] = answer
        before = asked(platform)
        result = await auditor.resume_audit(first.folder)
        assert asked(platform).total() - before.total() == 400 - first.manifest.fleet.devices
    assert_complete_and_true(world, result)


async def test_a_dead_account_s_fleet_is_listed_by_a_resume_and_the_others_were_audited(tmp_path: Path) -> None:
    worlds = [plain(60, seed=1), plain(80, seed=2)]
    accounts = [SimulatedAccount(f"key-{n}", Secret("s"), world=world) for n, world in enumerate(worlds)]
    (tmp_path / "s").write_text("s")
    async with Simulator(worlds[0], accounts=accounts, record_answers=True) as platform:
        tables = [
            account_table(platform.endpoint, tmp_path, name=f"a{n}", access_key_id=f"key-{n}", fleet=ALL)
            | {"access_key_secret": {"file": str(tmp_path / name)}}
            for n, name in enumerate(("s", "wrong"))
        ]
        (tmp_path / "wrong").write_text("another one")
        first = await auditor.run_audit(settings_for(tmp_path, *tables))
        assert (first.exit_code, first.manifest.state, first.manifest.devices.ok) == (3, "aborted", 60)
        assert 'account "a1": its fleet cannot be listed' in str(first.manifest.error)
        assert [each.state for each in first.manifest.listings] == ["complete", "pending"]
        assert auditor.verify(first.folder) == []
        (tmp_path / "wrong").write_text("s")
        result = await auditor.resume_audit(first.folder)
        assert set(asked(platform).values()) == {1}
    assert (result.exit_code, result.manifest.state, result.manifest.devices.ok) == (0, "complete", 140)
    accounts_in_order = [line["account"] for line in lines_of(result.folder / "devices.jsonl")]
    assert Counter(accounts_in_order) == {"a0": 60, "a1": 80}


async def test_an_account_with_a_fleet_file_does_not_wait_for_one_that_is_listed(tmp_path: Path) -> None:
    world = plain(60)
    world.write_fleet(tmp_path / "fleet.csv")
    seen: list[tuple[int, bool]] = []

    def watch(progress: auditor.Progress) -> None:
        seen.append((progress.devices.ok, progress.listing is not None))

    async with Simulator(world, latency=SLOW) as quick, Simulator(World(800, missing=0), latency=(0.1, 0.1)) as slow:
        tables = [
            account_table(slow.endpoint, tmp_path, name="slow", fleet=ALL, quotas={"QueryDevice": 8}, per_second=50),
            account_table(quick.endpoint, tmp_path, name="quick"),
        ]
        stop = auditor.Stop()
        async with anyio.create_task_group() as group:

            async def wish() -> None:
                while not any(ok == 60 for ok, _ in seen):  # noqa: ASYNC110  the audit has no event
                    await anyio.sleep(0.05)
                stop.wish("seen enough")

            group.start_soon(wish)
            result = await auditor.run_audit(settings_for(tmp_path, *tables), watch=watch, stop=stop)
    assert (60, True) in seen
    assert result.manifest.devices.ok >= 60
    assert auditor.verify(result.folder) == []
