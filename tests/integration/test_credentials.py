"""Audits with temporary access keys: renewed while they run, stopped alone when they cannot be, and never written."""

import json
import logging
import os
import re
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

import auditor
from auditor.audit.preflight import preflight
from auditor.cli.runtime import log_to_stderr
from auditor.client.signing import percent_encode
from auditor.config import credentials as ways
from auditor.config.settings import Account
from auditor.engine import key_renewal
from auditor.errors import CredentialsError
from auditor.models import AccessKey, Secret
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.search.options import IndexOptions
from auditor.simulator.server import DEFAULT_ACCOUNT, Simulator
from auditor.simulator.world import World
from tests.credentials_service import CredentialsService, credentials_service, printed_key
from tests.integration.audits import SLOW_LATENCY, assert_complete_and_correct, plain_world
from tests.integration.test_audit import account_table, settings_for

pytestmark = pytest.mark.anyio


def settings_with(folder: Path, platform: Simulator, credentials: dict[str, Any], **changes: Any) -> auditor.Settings:
    table = account_table(platform.endpoint, folder, **{"credentials": credentials, **changes})
    del table["access_key_id"], table["access_key_secret"]
    return settings_for(folder, table, concurrency=4)


def of_service(service: CredentialsService) -> dict[str, Any]:
    return {"type": "credentials_uri", "credentials_uri": service.uri}


def read_in_process(monkeypatch: pytest.MonkeyPatch, service: CredentialsService) -> list[str]:
    """Issue keys without the vendor's library, whose process takes half a second to start; return what was issued."""
    issued: list[str] = []

    def read(account: Account) -> AccessKey:
        if account.credentials is None:
            return ways.read_access_key(account)
        if service.refusing is not None:
            raise CredentialsError(f'account "eu": credentials: it is refused: {service.refusing}', refused=True)
        issued.append(service.issue().key_id)
        return service.issued[-1]

    monkeypatch.setattr(key_renewal, "read_access_key", read)
    monkeypatch.setattr("auditor.engine.credentials.read_access_key", read)
    return issued


@pytest.mark.parametrize("dialect", ["tuya", "alibaba"])
async def test_an_audit_with_the_vendors_library_and_a_service_on_loopback(tmp_path: Path, dialect: Any) -> None:
    world = plain_world(20)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world, dialect=dialect) as platform, credentials_service(platform, seconds=600) as service:
        changes = {"dialect": dialect, "region_id": "cn-shanghai"}
        result = await auditor.run_audit(settings_with(tmp_path, platform, of_service(service), **changes))
    assert_complete_and_correct(world, result)
    assert len(service.issued) == 1
    assert not platform.counts.rejected_by_code


@pytest.mark.slow
async def test_keys_of_seconds_are_renewed_in_the_middle_and_no_device_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = plain_world(300)
    world.write_fleet(tmp_path / "fleet.csv")
    async with (
        Simulator(world, latency=SLOW_LATENCY) as platform,
        credentials_service(platform, seconds=1.0) as service,
    ):
        read_in_process(monkeypatch, service)
        began = time.monotonic()
        result = await auditor.run_audit(settings_with(tmp_path, platform, of_service(service), calls_per_second=100))
        seconds = time.monotonic() - began
    assert_complete_and_correct(world, result)
    refused = platform.counts.rejected_by_code["InvalidSecurityToken.Expired"]
    assert 3 <= len(service.issued) <= 2 + seconds / 0.5, "each is used for at least half of its time"
    assert result.manifest.requests.sent == 300 + refused
    # Each end of a key may be met by one request in flight for each worker.
    assert refused <= 4 * len(service.issued)


@pytest.mark.slow
async def test_a_command_is_the_source_of_keys(tmp_path: Path) -> None:
    world = plain_world(10)
    world.write_fleet(tmp_path / "fleet.csv")
    async with Simulator(world) as platform:
        key = platform.issue_key(DEFAULT_ACCOUNT.access_key_id, 600)
        (tmp_path / "key.json").write_text(printed_key(key))
        command = {"command": ["cat", str(tmp_path / "key.json")], "format": "json"}
        result = await auditor.run_audit(settings_with(tmp_path, platform, command))
        assert_complete_and_correct(world, result)
        parts = {
            name: {"file": str(tmp_path / name)} for name in ("access_key_id", "access_key_secret", "security_token")
        }
        for name, text in zip(parts, (key.key_id, key.secret.reveal(), token_of(key)), strict=True):
            (tmp_path / name).write_text(text)
        result = await auditor.run_audit(settings_with(tmp_path, platform, {"type": "sts", **parts}))
        assert_complete_and_correct(world, result)


def token_of(key: AccessKey) -> str:
    assert key.token is not None
    return key.token.reveal()


@pytest.mark.slow
async def test_a_refused_renewal_stops_that_account_alone_and_resume_continues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = plain_world(200)
    world.write_fleet(tmp_path / "fleet.csv")
    other = SimulatedAccount("other-key", Secret("other-secret"))
    async with (
        Simulator(world, latency=SLOW_LATENCY, accounts=(DEFAULT_ACCOUNT, other)) as platform,
        credentials_service(platform, seconds=0.5) as service,
    ):
        read_in_process(monkeypatch, service)
        temporary = account_table(platform.endpoint, tmp_path, credentials=of_service(service), calls_per_second=100)
        del temporary["access_key_id"], temporary["access_key_secret"]
        (tmp_path / "other").write_text("other-secret")
        lasting = account_table(
            platform.endpoint, tmp_path, name="us", access_key_id="other-key",
            access_key_secret={"file": str(tmp_path / "other")},
        )  # fmt: skip
        settings = settings_for(tmp_path, temporary, lasting, concurrency=4)

        async def refuse() -> None:
            await anyio.sleep(0.7)
            service.refusing = "NoPermission"

        async with anyio.create_task_group() as group:
            group.start_soon(refuse)
            result = await auditor.run_audit(settings)
        assert result.exit_code == 3
        devices = result.manifest.devices
        assert (devices.failed, devices.pending > 0) == (0, True)
        assert result.manifest.error == 'account "eu": credentials: it is refused: NoPermission'
        assert result.manifest.devices.ok >= 200, "the other account has all of its devices"
        service.refusing = None
        resumed = await auditor.run_audit(settings, resume=True)
    assert (resumed.exit_code, resumed.manifest.devices.failed) == (0, 0)
    assert resumed.manifest.devices.ok == 400


@pytest.mark.slow
async def test_keys_and_tokens_are_in_no_file_log_or_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    world = plain_world(60)
    world.write_fleet(tmp_path / "fleet.csv")
    log_to_stderr("debug")
    logging.getLogger().setLevel(logging.DEBUG)
    seen: list[str] = []
    async with (
        Simulator(world, latency=SLOW_LATENCY) as platform,
        credentials_service(platform, seconds=300) as service,
    ):
        settings = settings_with(tmp_path, platform, of_service(service))
        seen.append(repr(await auditor.run_audit(settings)))
        seen.append(repr(await preflight(settings)))
        # The platform quotes the text that was signed, with the token in it.
        first = service.issued[0]
        (tmp_path / "wrong.json").write_text(printed_key(first).replace(first.secret.reveal(), "wrong"))
        command = {"command": ["cat", str(tmp_path / "wrong.json")], "format": "json"}
        denied = await auditor.run_audit(settings_with(tmp_path, platform, command))
        assert denied.exit_code == 3
        assert "SignatureDoesNotMatch" in str(denied.manifest.error)
        seen.append(repr(denied))
        service.refusing = "NoPermission"
        seen.append(repr(await preflight(settings)))
    (tmp_path / "wrong.json").unlink()
    seen += capfd.readouterr()
    assert "NoPermission (HTTP 403)" in "".join(seen)
    hidden = {token_of(key) for key in service.issued} | {key.secret.reveal() for key in service.issued}
    hidden |= {percent_encode(text) for text in hidden}
    seen += texts_in(tmp_path) + texts_in(Path(os.environ["XDG_STATE_HOME"]))
    for text in seen:
        for each in hidden:
            assert each[:24] not in text


def texts_in(folder: Path) -> list[str]:
    return [path.read_text("latin-1") for path in folder.rglob("*") if path.is_file()]


BASE = {"ListOTAModuleVersionsByDevice"}
DISCOVERY = {"QueryProductList", "QueryDevice", "ListOTAModuleByProduct"}
RELEASED = {"ListOTAFirmware", "ListOTAJobByFirmware", "ListOTATaskByJob"}
STATES = {"BatchGetDeviceState"}
INDEX = {"QueryDeviceBySQL"}
DETAILS = {"BatchQueryDeviceDetail"}
EVERYTHING: frozenset[str] = frozenset(BASE | DISCOVERY | RELEASED | STATES | INDEX | DETAILS)


@pytest.mark.parametrize(
    ("account", "changes", "needed"),
    [
        ({}, {}, BASE),
        ({"fetch_product_modules": True}, {}, BASE | {"ListOTAModuleByProduct"}),
        ({}, {"released": True}, BASE | RELEASED),
        ({}, {"modules": ["default"]}, BASE | DETAILS),
        ({"fleet": {"products": "all"}}, {"since": "last"}, BASE | DISCOVERY | STATES),
        ({"fleet": {"products": "all"}, "read": "auto"}, {}, BASE | DISCOVERY | INDEX),
        (
            {"fleet": {"products": "all"}, "fetch_product_modules": False},
            {},
            BASE | DISCOVERY - {"ListOTAModuleByProduct"},
        ),
    ],
)
async def test_check_names_every_missing_permission_and_the_documented_ones_are_enough(
    tmp_path: Path, account: dict[str, Any], changes: dict[str, Any], needed: set[str]
) -> None:
    world = plain_world(20)
    world.write_fleet(tmp_path / "fleet.csv")

    async def problem_without(denied: frozenset[str]) -> str | None:
        key = SimulatedAccount(DEFAULT_ACCOUNT.access_key_id, DEFAULT_ACCOUNT.secret, denied=denied)
        async with Simulator(world, accounts=(key,), index=IndexOptions()) as platform:
            settings = settings_for(tmp_path, account_table(platform.endpoint, tmp_path, **account), **changes)
            return (await preflight(settings))[0].problem

    assert await problem_without(EVERYTHING - needed) is None
    said = str(await problem_without(EVERYTHING))
    assert set(re.findall(r"permission for (\w+): iot:(\w+) in a policy", said)) == {(each, each) for each in needed}
    for each in needed:
        assert f"permission for {each}: iot:{each} in a policy" in str(await problem_without(frozenset({each})))


def test_the_documented_policy_is_that_of_a_discovered_fleet() -> None:
    text = (Path(__file__).parents[2] / "docs" / "credentials.md").read_text()
    policy = re.findall(r"```json\n(.*?)```", text, re.DOTALL)[0]
    assert set(json.loads(policy)["Statement"][0]["Action"]) == {f"iot:{each}" for each in BASE | DISCOVERY}
    listed = set(re.findall(r"`iot:(\w+)`", text.partition("| feature |")[2].partition("\n\n")[0]))
    assert listed == EVERYTHING


@pytest.mark.slow
async def test_an_account_that_is_read_by_the_index_continues_so_after_its_key_could_not_be_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(1_500, products=1, missing=0, silent=0, inactive=0)
    async with (
        Simulator(world, latency=(0.05, 0.05), index=IndexOptions()) as platform,
        credentials_service(platform, seconds=0.5) as service,
    ):
        read_in_process(monkeypatch, service)
        fleet = {"products": "all"}
        settings = settings_with(tmp_path, platform, of_service(service), fleet=fleet, read="index")

        async def refuse() -> None:
            await anyio.sleep(0.7)
            service.refusing = "NoPermission"

        async with anyio.create_task_group() as group:
            group.start_soon(refuse)
            result = await auditor.run_audit(settings)
        assert result.manifest.error == 'account "eu": credentials: it is refused: NoPermission'
        assert result.exit_code == 3
        service.refusing = None
        resumed = await auditor.run_audit(settings, resume=True)
    assert (resumed.exit_code, resumed.manifest.devices.ok) == (0, 1_500)
    assert resumed.manifest.requests.sent < 200
