"""Complete audits in this process against the simulated platform: all results are correct."""

import gzip
import json
import logging
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import auditor
from auditor.audit import session
from auditor.audit.preflight import preflight
from auditor.cli.runtime import log_to_stderr
from auditor.client.signing import Signer, percent_encode
from auditor.errors import FleetError
from auditor.models import Secret
from auditor.simulator.faults import Corruption, Faults
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import SimulatedDevice, World

pytestmark = pytest.mark.anyio

MODULES = 3
ALL_FAULTS = Faults(
    reset=0.0125, cut=0.0125, unavailable=0.0125, internal=0.0125, html=0.0125, garbage=0.0125, business=0.0125,
    http10=0.0125, nonce=0.0105, throttle=0.001, silence=0.001, drip=0.001,
)  # fmt: skip
"""A ninth of the requests; a throttled answer holds the account back, silence and a drip last a timeout: fewer."""


def account_table(endpoint: str, folder: Path, **changes: object) -> dict[str, Any]:
    secret = folder / "secret"
    secret.write_text(DEFAULT_ACCOUNT.secret.reveal())
    return {
        "name": "eu",
        "endpoint": endpoint,
        "access_key_id": DEFAULT_ACCOUNT.access_key_id,
        "access_key_secret": {"file": str(secret)},
        "calls_per_second": "unlimited",
        "fleet": {"file": str(folder / "fleet.csv")},
        **changes,
    }


def settings_for(folder: Path, *accounts: dict[str, Any], **changes: object) -> auditor.Settings:
    return auditor.parse_settings({"directory": str(folder / "audits"), "account": list(accounts), **changes})


def read_lines(path: Path) -> list[dict[str, Any]]:
    compressed = path.with_name(f"{path.name}.gz")
    content = path.read_bytes() if path.exists() else gzip.decompress(compressed.read_bytes())
    return [json.loads(line) for line in content.splitlines()]


def expected_status(device: SimulatedDevice) -> str:
    if not device.exists:
        return "not_found"
    return "ok" if device.activated and device.modules else "empty"


def assert_matches(world: Iterable[SimulatedDevice], folder: Path) -> None:
    """Check that every device is in the folder exactly once, with exactly its modules."""
    lines = read_lines(folder / "devices.jsonl")
    by_id = {line["iot_id"]: line for line in lines}
    assert len(by_id) == len(lines)
    expected: Counter[tuple[str, str, str]] = Counter()
    for device in world:
        line = by_id.pop(device.iot_id)
        assert line["status"] == expected_status(device), device
        modules = {(module.module_name, module.module_version) for module in device.modules}
        if line["status"] != "ok":
            modules = set()
        assert {(module["module_name"], module["module_version"]) for module in line["modules"]} == modules
        assert line["total"] == len(line["modules"]) == len(modules)
        expected.update((device.product_key, *module) for module in modules)
    assert by_id == {}
    with auditor.Run(folder) as opened:
        versions = list(opened.inventory())
    assert {(v.product_key, v.module_name, v.module_version): v.devices for v in versions} == expected
    reporting: Counter[tuple[str | None, str]] = Counter()
    for version in versions:
        reporting[version.product_key, version.module_name] += version.devices
    for version in versions:
        share = version.devices / reporting[version.product_key, version.module_name]
        assert version.share == pytest.approx(share, abs=1e-6)


@pytest.mark.parametrize("columns", [("product_key", "device_name", "iot_id"), ("iot_id",)])
@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_both_dialects_and_both_ways_to_identify_a_device(
    tmp_path: Path, columns: tuple[str, ...], dialect: Any
) -> None:
    world = World(300)
    world.write_fleet(tmp_path / "fleet.csv", columns=columns)
    async with Simulator(world, dialect=dialect) as platform:
        table = account_table(platform.endpoint, tmp_path, dialect=dialect, region_id="cn-shanghai")
        result = await auditor.run_audit(settings_for(tmp_path, table))
    assert result.exit_code == 0
    assert result.manifest.state == "complete"
    assert_matches(world, result.folder)


async def test_fleet_identified_by_product_and_name_gets_the_iot_ids(tmp_path: Path) -> None:
    world = World(50, missing=0, silent=0, inactive=0, large=0)
    world.write_fleet(tmp_path / "fleet.csv", columns=("product_key", "device_name"))
    async with Simulator(world) as platform:
        result = await auditor.run_audit(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)))
    assert_matches(world, result.folder)
    assert auditor.verify_run(result.folder) == []


@pytest.mark.slow
async def test_ten_thousand_devices_are_correct_despite_all_faults(tmp_path: Path) -> None:
    world = World(10_000, seed=7)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, faults=ALL_FAULTS, seed=7) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), timeout=1.0)
        result = await auditor.run_audit(settings)
        met = platform.counts.faults
    assert set(met) == set(ALL_FAULTS.__slots__) - {"silence_seconds"}
    assert sum(met.values()) > 800
    assert result.manifest.devices.failed == result.manifest.devices.pending == 0
    assert result.manifest.state == "complete"
    assert result.manifest.requests.retried > 500
    assert_matches(world, result.folder)


@pytest.mark.parametrize("modules", [0, 1, 199, 200, 201, 400, 1000])
async def test_all_pages_of_a_device_are_read(tmp_path: Path, modules: int) -> None:
    world = World(3, missing=0, silent=0, inactive=0, large=0, module_counts={1: modules})
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        result = await auditor.run_audit(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)))
        requests = platform.counts.received
    assert_matches(world, result.folder)
    assert requests == 2 + max(1, -(-modules // 200))


STATUS_BY_CORRUPTION: dict[Corruption, str] = {
    "always_page_1": "failed",
    "always_page_1_echo_1": "failed",
    "empty_page_early": "failed",
    "data_null": "empty",
    "data_hollow": "empty",
    "data_array": "ok",
    "data_hollow_with_total": "failed",
    "no_total": "failed",
    "page_count_1": "ok",
    "total_grows": "failed",
    "other_device": "failed",
}


async def test_corrupted_responses_give_a_correct_result_or_a_named_failure(tmp_path: Path) -> None:
    corruptions = dict(enumerate(STATUS_BY_CORRUPTION))
    world = World(
        len(STATUS_BY_CORRUPTION),
        missing=0,
        silent=0,
        inactive=0,
        large=0,
        module_counts=dict.fromkeys(corruptions, 450),
    )
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, corruptions=corruptions) as platform:
        settings = settings_for(
            tmp_path, account_table(platform.endpoint, tmp_path), max_failed=len(STATUS_BY_CORRUPTION)
        )
        result = await auditor.run_audit(settings)
        assert platform.counts.received < 20 * len(STATUS_BY_CORRUPTION)
    answered = {line["iot_id"]: line for line in read_lines(result.folder / "devices.jsonl")}
    failed = {line["iot_id"]: line for line in read_lines(result.folder / "failures.jsonl")}
    for index, corruption in corruptions.items():
        device = world.device(index)
        if STATUS_BY_CORRUPTION[corruption] == "failed":
            assert failed[device.iot_id]["code"] == "auditor.InconsistentPages", corruption
            assert failed[device.iot_id]["message"]
        else:
            assert answered[device.iot_id]["status"] == STATUS_BY_CORRUPTION[corruption], corruption
            assert len(answered[device.iot_id]["modules"]) == (450 if STATUS_BY_CORRUPTION[corruption] == "ok" else 0)
    assert auditor.verify_run(result.folder) == []


async def test_denied_account_does_not_affect_the_others(tmp_path: Path) -> None:
    world = World(200)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as alive, Simulator(world, accounts=[SimulatedAccount("other", Secret("x"))]) as dead:
        settings = settings_for(
            tmp_path,
            account_table(alive.endpoint, tmp_path),
            account_table(dead.endpoint, tmp_path, name="dead"),
        )
        result = await auditor.run_audit(settings)
        assert dead.counts.received <= MODULES
    assert result.exit_code == 3
    assert result.manifest.state == "aborted"
    assert 'account "dead"' in str(result.manifest.error)
    assert result.manifest.devices.pending == 200
    assert_matches(world, result.folder)


async def test_clock_difference_of_twenty_minutes_is_learned_and_logged_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(40)
    world.write_fleet(tmp_path / "fleet.csv")
    log_to_stderr("warning")
    async with Simulator(world, clock_offset=1200) as platform:
        result = await auditor.run_audit(settings_for(tmp_path, account_table(platform.endpoint, tmp_path)))
        assert platform.counts.rejected_by_code == {"InvalidTimeStamp.Expired": 3} | {
            code: count for code, count in platform.counts.rejected_by_code.items() if code.startswith("iot.")
        }
    assert result.exit_code == 0
    assert capsys.readouterr().err.count("clock") == 1


async def test_requests_stay_within_the_quota_and_every_attempt_counts(tmp_path: Path) -> None:
    world = World(150)
    world.write_fleet(tmp_path / "fleet.csv")
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, calls_per_second=100)
    async with Simulator(world, accounts=[account], latency=(0.01, 0.03)) as platform:
        table = account_table(platform.endpoint, tmp_path, calls_per_second=100, quota_share=0.9)
        result = await auditor.run_audit(settings_for(tmp_path, table))
        assert platform.counts.received == result.manifest.requests.sent
        assert platform.counts.throttled == result.manifest.requests.throttled == 0
    rate = result.manifest.rate
    assert rate.target == pytest.approx(90)
    assert rate.learned is not None
    assert 0.95 * 90 <= rate.learned < 90
    assert rate.latency is not None
    assert 0.01 <= rate.latency <= 0.1
    assert rate.in_flight == pytest.approx(rate.latency * rate.achieved, rel=0.3)


@pytest.mark.slow
async def test_unknown_quota_is_found_and_not_exceeded(tmp_path: Path) -> None:
    world = World(1500, large=0)
    world.write_fleet(tmp_path / "fleet.csv")
    account = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, calls_per_second=150)
    async with Simulator(world, accounts=[account], latency=(0.01, 0.03)) as platform:
        table = account_table(platform.endpoint, tmp_path, calls_per_second="auto")
        result = await auditor.run_audit(settings_for(tmp_path, table))
    rate, requests = result.manifest.rate, result.manifest.requests
    assert (result.exit_code, rate.target, result.manifest.accounts[0].quota) == (0, None, None)
    assert rate.learned is not None
    assert 0.8 * 150 <= rate.learned <= 1.1 * 150
    assert requests.throttled <= 0.03 * requests.sent


async def test_outcomes_are_streamed_and_nothing_is_written(tmp_path: Path) -> None:
    world = World(100)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        async with auditor.stream_outcomes(settings) as stream:
            seen = [outcome async for outcome in stream]
        some = [auditor.Device("eu", None, None, device.iot_id) for device in world][:7]
        async with auditor.stream_outcomes(settings, iter(some)) as stream:
            few = [outcome async for outcome in stream]
        async with auditor.stream_outcomes(settings) as stream:
            async for _ in stream:
                break
        other = account_table(platform.endpoint, tmp_path, name="us")
        both = settings_for(tmp_path, account_table(platform.endpoint, tmp_path), other)
        with pytest.raises(FleetError, match="2 accounts"):
            await auditor.stream_outcomes(both, some).__aenter__()
    assert {outcome.device.iot_id for outcome in seen} == {device.iot_id for device in world}
    assert {outcome.device.iot_id for outcome in few} == {device.iot_id for device in some}
    assert not (tmp_path / "audits").exists()


async def test_error_in_the_block_of_a_stream_is_raised_unwrapped(tmp_path: Path) -> None:
    world = World(100)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))

        async def use() -> None:
            async with auditor.stream_outcomes(settings) as stream:
                await stream.receive()
                raise KeyError("mine")

        with pytest.raises(KeyError, match="mine"):
            await use()


async def test_failing_progress_callback_is_not_called_again_and_the_audit_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "PROGRESS_SECONDS", 0.01)
    reports = []

    def on_progress(progress: auditor.Progress) -> None:
        reports.append(progress)
        raise OSError("the reader has gone")

    world = World(200)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, latency=(0.05, 0.1)) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        result = await auditor.run_audit(settings, on_progress=on_progress)
    assert result.manifest.state == "complete"
    assert len(reports) == 1


async def test_small_fleet_on_an_unreachable_platform_ends_as_never_reached(tmp_path: Path) -> None:
    World(2).write_fleet(tmp_path / "fleet.csv")
    table = account_table("http://127.0.0.1:1/", tmp_path)
    settings = settings_for(tmp_path, table, max_attempts=1, give_up_after=1)
    result = await auditor.run_audit(settings, limit=1)
    assert result.exit_code == 3
    assert "127.0.0.1 cannot be reached" in str(result.manifest.error)
    (check,) = await preflight(settings)
    assert "127.0.0.1 cannot be reached" in str(check.problem)


async def test_invalid_ca_file_is_reported_before_a_run_folder_is_created(tmp_path: Path) -> None:
    World(2).write_fleet(tmp_path / "fleet.csv")
    (tmp_path / "ca.pem").write_text("no certificates")
    table = account_table("https://127.0.0.1:1/", tmp_path, ca_file=str(tmp_path / "ca.pem"))
    with pytest.raises(auditor.AuditorError, match="holds no certificates"):
        await auditor.run_audit(settings_for(tmp_path, table))
    assert not (tmp_path / "audits").exists()


async def test_stream_of_a_denied_account_ends_with_the_cause(tmp_path: Path) -> None:
    world = World(10)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, accounts=[SimulatedAccount("other", Secret("x"))]) as platform:
        settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path))
        with pytest.raises(auditor.AuditorError, match=r'account "eu": the platform refuses it'):
            async with auditor.stream_outcomes(settings) as stream:
                assert [outcome async for outcome in stream] == []


async def test_fleet_argument_is_rejected_with_several_accounts(tmp_path: Path) -> None:
    tables = [account_table("http://127.0.0.1:1/", tmp_path, name=name) for name in ("a", "b")]
    with pytest.raises(FleetError, match="2 accounts"):
        await auditor.run_audit(settings_for(tmp_path, *tables), fleet="some.csv")


async def test_no_secret_signature_or_signed_url_is_ever_shown_or_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = "c4n4ry+secret/never=shown"
    signatures: list[str] = []
    sign = Signer.sign

    def recorded(self: Signer, *arguments: Any, **named: Any) -> tuple[str, str]:
        query, signed = sign(self, *arguments, **named)
        signatures.append(signed)
        return query, signed

    monkeypatch.setattr(Signer, "sign", recorded)
    log_to_stderr("debug")
    world = World(120)
    world.write_fleet(tmp_path / "fleet.csv")
    table = account_table("http://127.0.0.1:1/", tmp_path)
    (tmp_path / "secret").unlink()
    monkeypatch.setenv("CANARY", canary)
    table["access_key_secret"] = {"env": "CANARY"}
    faults = Faults.evenly(0.5, silence=0.005)
    texts: list[str] = []
    for known in (canary, "another"):
        accounts = [SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, Secret(known))]
        async with Simulator(world, accounts=accounts, faults=faults) as platform:
            table["endpoint"] = platform.endpoint
            settings = settings_for(tmp_path, table, timeout=0.5, max_attempts=2, give_up_after=5.0)
            texts += [repr(settings), str(settings)]
            result = await auditor.run_audit(settings, limit=120 if known == canary else 20)
            texts += [repr(result), str(result.manifest.error)]
    table["endpoint"] = "http://127.0.0.1:1/"
    unreachable = await auditor.run_audit(settings_for(tmp_path, table, give_up_after=0.5), limit=1)
    texts.append(repr(unreachable))
    captured = capsys.readouterr()
    texts += [captured.out, captured.err]
    texts += [path.read_bytes().decode("latin-1") for path in (tmp_path / "audits").rglob("*") if path.is_file()]
    logging.getLogger().handlers.clear()
    everything = "\n".join(texts)
    assert len(signatures) > 120
    assert "SignatureDoesNotMatch" in everything
    for hidden in {canary, percent_encode(canary), *signatures, *map(percent_encode, signatures)}:
        assert hidden not in everything
    assert not re.search(r"Signature=|SignatureNonce=", everything)
