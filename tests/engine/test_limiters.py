"""An account's limiters: a quota for each operation, shared as the settings say."""

from pathlib import Path
from typing import Any

import pytest
import structlog

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    LIST_OTA_MODULE_BY_PRODUCT,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    QUERY_DEVICE,
    QUERY_PRODUCT_LIST,
    RELEASE_OPERATIONS,
)
from auditor.config.loader import parse_settings
from auditor.engine.limiters import AccountLimiters, sends_password_unencrypted
from auditor.errors import SettingsError
from auditor.resilience import file_backend
from auditor.resilience.adaptive_rate import INITIAL_MARGIN, INITIAL_SEARCH_RATE
from auditor.resilience.rate_limiter import AdaptiveRateLimiter, RateLimiter, UnlimitedRateLimiter
from auditor.resilience.shared_quota import size_for

pytestmark = pytest.mark.anyio

DEVICE_OPERATION = LIST_OTA_MODULE_VERSIONS_BY_DEVICE
OPERATIONS = (
    DEVICE_OPERATION, QUERY_PRODUCT_LIST, QUERY_DEVICE, BATCH_GET_DEVICE_STATE, LIST_OTA_MODULE_BY_PRODUCT,
    *RELEASE_OPERATIONS,
)  # fmt: skip


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of this machine's quotas in this test."""
    monkeypatch.setattr(file_backend, "MACHINE_DIRECTORY", str(tmp_path / "quotas"))
    return tmp_path / "quotas"


def open_limiters(key_id: str = "key", *, quota_sharing: object = "machine", **account: Any) -> AccountLimiters:
    table = {
        "name": "eu",
        "endpoint": "https://example.test:8686/",
        "access_key_id": "key",
        "access_key_secret": {"env": "SECRET"},
        **account,
    }
    settings = parse_settings({"account": [table], "quota_sharing": quota_sharing})
    return AccountLimiters(settings, settings.account[0], key_id, priority=False)


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()} if directory.exists() else {}


def block_directory(directory: Path) -> None:
    """Write a file where a directory is to be created."""
    directory.write_text("")


def configured_rate(limiter: RateLimiter) -> float:
    """Requests a second at most."""
    assert isinstance(limiter, AdaptiveRateLimiter)
    return limiter._backend.quota.rate.configured_rate


async def test_each_operation_has_its_documented_quota_and_its_own_limiter() -> None:
    async with open_limiters(calls_per_second=8, quota_share=0.5) as limiters:
        found = {operation.name: configured_rate(limiters.for_operation(operation)) for operation in OPERATIONS}
        assert limiters.for_operation(DEVICE_OPERATION) is limiters.for_operation(DEVICE_OPERATION)
        assert limiters.for_operation(DEVICE_OPERATION) is not limiters.for_operation(QUERY_DEVICE)
    assert found == {
        "ListOTAModuleVersionsByDevice": 4.0,
        "QueryProductList": 25.0,
        "QueryDevice": 25.0,
        "BatchGetDeviceState": 25.0,
        "ListOTAModuleByProduct": 5.0,
        "ListOTAFirmware": 5.0,
        "ListOTAJobByFirmware": 5.0,
        "ListOTATaskByJob": 5.0,
    }


async def test_an_account_without_a_quota_has_none_for_any_operation() -> None:
    async with open_limiters(calls_per_second="unlimited") as limiters:
        assert isinstance(limiters.for_operation(DEVICE_OPERATION), UnlimitedRateLimiter)
        assert isinstance(limiters.for_operation(QUERY_DEVICE), UnlimitedRateLimiter)


async def test_an_unknown_quota_is_probed_from_ten_requests_a_second() -> None:
    async with open_limiters(calls_per_second="auto") as limiters:
        assert limiters.for_operation(DEVICE_OPERATION).rate == INITIAL_SEARCH_RATE
        assert configured_rate(limiters.for_operation(QUERY_DEVICE)) == 50


async def test_a_quota_is_shared_by_key_endpoint_and_operation(directory: Path) -> None:
    elsewhere = open_limiters(endpoint="https://example.test:8687/")
    async with open_limiters() as one, open_limiters() as same, open_limiters("other") as key, elsewhere as endpoint:
        for limiters in (one, same, key, endpoint):
            limiters.for_operation(DEVICE_OPERATION)
        one.for_operation(QUERY_DEVICE)
        await one.for_operation(DEVICE_OPERATION).acquire()
        await same.for_operation(DEVICE_OPERATION).acquire()
        await key.for_operation(DEVICE_OPERATION).acquire()
        assert (
            one.for_operation(DEVICE_OPERATION).other_participants,
            same.for_operation(DEVICE_OPERATION).other_participants,
            key.for_operation(DEVICE_OPERATION).other_participants,
        ) == (0, 1, 0)
    files = contents(directory)
    assert len(files) == 4
    assert not any("key" in name or b"key" in content for name, content in files.items())
    # A quota has a stamp before and after it; a file that was not used yet is empty.
    assert {len(content) for content in files.values()} == {0, size_for(4096) + 16}


async def test_quota_sharing_none_writes_no_file(directory: Path) -> None:
    async with open_limiters(quota_sharing="none") as limiters:
        await limiters.for_operation(DEVICE_OPERATION).acquire()
    assert contents(directory) == {}


async def test_a_configured_directory_is_used(tmp_path: Path, directory: Path) -> None:
    async with open_limiters(quota_sharing={"directory": str(tmp_path)}) as limiters:
        await limiters.for_operation(DEVICE_OPERATION).acquire()
    assert [name.endswith(file_backend.FILE_SUFFIX) for name in contents(tmp_path)] == [True]
    assert contents(directory) == {}


def test_a_configured_directory_that_cannot_be_used_is_an_error(tmp_path: Path) -> None:
    open_limiters(quota_sharing={"directory": str(tmp_path)}).for_operation(DEVICE_OPERATION)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingsError, match=r"quota_sharing: .*: cannot be used: Is a directory"):
        open_limiters(quota_sharing={"directory": str(tmp_path)}).for_operation(DEVICE_OPERATION)


async def test_another_private_directory_is_used_if_the_usual_one_cannot_be(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_directory(directory)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "missing"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with structlog.testing.capture_logs() as logs:
        async with open_limiters() as one, open_limiters() as other:
            for limiters in (one, other, one):
                await limiters.for_operation(DEVICE_OPERATION).acquire()
            assert one.for_operation(DEVICE_OPERATION).other_participants == 1
    assert len(contents(tmp_path / "auditor")) == 1
    assert [(line["event"], line["directory"]) for line in logs] == [
        ("quota_shared_elsewhere", str(tmp_path / "auditor"))
    ] * 2
    assert str(directory) in logs[0]["reason"]


async def test_a_machine_without_a_quota_directory_is_audited_without_sharing(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    block_directory(directory)
    for name in ("XDG_RUNTIME_DIR", "XDG_STATE_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "missing"))
    monkeypatch.chdir(tmp_path)
    with structlog.testing.capture_logs() as logs:
        async with open_limiters() as limiters:
            assert limiters.for_operation(DEVICE_OPERATION).rate == 10 / (1 + INITIAL_MARGIN)
    assert [(line["event"], line["account"]) for line in logs] == [("quota_not_shared", "eu")]


@pytest.mark.parametrize(
    ("address", "unencrypted"),
    [
        ("redis://10.0.0.5:6379/0", True),
        ("redis://localhost.example:6379", True),
        ("redis://127.0.0.1:6379/0", False),
        ("redis://[::1]:6379", False),
        ("rediss://10.0.0.5:6379/0", False),
    ],
)
def test_a_password_that_crosses_a_network_without_tls_is_noticed(address: str, unencrypted: bool) -> None:  # noqa: FBT001
    assert sends_password_unencrypted(address) == unencrypted
