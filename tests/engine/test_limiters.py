"""An account's gates: a quota for each operation, shared as the settings say."""

from pathlib import Path
from typing import Any

import pytest
import structlog

from auditor.client.operations import LIST_OTA_MODULE_VERSIONS_BY_DEVICE, OTHERS, QUERY_DEVICE
from auditor.config.loader import settings_from
from auditor.engine.limiters import Gates
from auditor.errors import SettingsError
from auditor.resilience import quota_backends as ledger
from auditor.resilience.adaptive_rate import MARGIN, UNTOLD
from auditor.resilience.rate_limiter import Gate, NoQuota, Quota
from auditor.resilience.shared_quota import cells_for

pytestmark = pytest.mark.anyio

ASK = LIST_OTA_MODULE_VERSIONS_BY_DEVICE


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this machine's budgets lie in this test."""
    monkeypatch.setattr(ledger, "ON_THIS_MACHINE", str(tmp_path / "budgets"))
    return tmp_path / "budgets"


def gates_of(key_id: str = "key", *, budget: object = "machine", **account: Any) -> Gates:
    table = {
        "name": "eu",
        "endpoint": "https://example.test:8686/",
        "access_key_id": "key",
        "access_key_secret": {"env": "SECRET"},
        **account,
    }
    settings = settings_from({"account": [table], "budget": budget})
    return Gates(settings, settings.account[0], key_id, priority=False)


def contents(place: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in place.iterdir()} if place.exists() else {}


def in_the_way(place: Path) -> None:
    """A file where a directory is to be made."""
    place.write_text("")


def told(gate: Gate) -> float:
    """Requests a second at most."""
    assert isinstance(gate, Quota)
    return gate._ledger.budget.rate.told


async def test_every_operation_has_the_quota_that_the_documents_tell_and_a_gate_of_its_own() -> None:
    async with gates_of(per_second=8, share=0.5) as gates:
        found = {operation.name: told(gates.of(operation)) for operation in (ASK, *OTHERS)}
        assert gates.of(ASK) is gates.of(ASK)
        assert gates.of(ASK) is not gates.of(QUERY_DEVICE)
    assert found == {
        "ListOTAModuleVersionsByDevice": 4.0,
        "QueryProductList": 25.0,
        "QueryDevice": 25.0,
        "BatchGetDeviceState": 25.0,
        "BatchQueryDeviceDetail": 2.5,
        "ListOTAModuleByProduct": 5.0,
        "QueryDeviceBySQL": 5.0,
    }


async def test_an_account_without_a_quota_has_none_for_any_operation() -> None:
    async with gates_of(per_second="unlimited") as gates:
        assert isinstance(gates.of(ASK), NoQuota)
        assert isinstance(gates.of(QUERY_DEVICE), NoQuota)


async def test_a_quota_that_is_not_known_is_looked_for_from_ten_on() -> None:
    async with gates_of(per_second="auto") as gates:
        assert gates.of(ASK).rate == UNTOLD
        assert told(gates.of(QUERY_DEVICE)) == 50


async def test_one_account_is_one_budget_and_another_key_endpoint_or_operation_is_another(place: Path) -> None:
    elsewhere = gates_of(endpoint="https://example.test:8687/")
    async with gates_of() as one, gates_of() as same, gates_of("other") as key, elsewhere as endpoint:
        for gates in (one, same, key, endpoint):
            gates.of(ASK)
        one.of(QUERY_DEVICE)
        await one.of(ASK).slot()
        await same.of(ASK).slot()
        await key.of(ASK).slot()
        assert (one.of(ASK).others, same.of(ASK).others, key.of(ASK).others) == (0, 1, 0)
    files = contents(place)
    assert len(files) == 4
    assert not any("key" in name or b"key" in content for name, content in files.items())
    assert {len(content) for content in files.values()} == {8 * cells_for(4096)}


async def test_alone_means_alone(place: Path) -> None:
    async with gates_of(budget="alone") as gates:
        await gates.of(ASK).slot()
    assert contents(place) == {}


async def test_a_directory_of_the_settings_is_used(tmp_path: Path, place: Path) -> None:
    async with gates_of(budget={"directory": str(tmp_path)}) as gates:
        await gates.of(ASK).slot()
    assert [name.endswith(ledger.SUFFIX) for name in contents(tmp_path)] == [True]
    assert contents(place) == {}


def test_a_directory_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    gates_of(budget={"directory": str(tmp_path)}).of(ASK)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.raises(SettingsError, match=r"budget: .*: cannot be used: Is a directory"):
        gates_of(budget={"directory": str(tmp_path)}).of(ASK)


async def test_a_machine_without_a_place_for_budgets_is_audited_all_the_same(place: Path) -> None:
    in_the_way(place)
    with structlog.testing.capture_logs() as logs:
        async with gates_of() as gates:
            assert gates.of(ASK).rate == 10 / (1 + MARGIN)
    assert [(line["event"], line["account"]) for line in logs] == [
        ("the quota is not shared with other audits here", "eu")
    ]
