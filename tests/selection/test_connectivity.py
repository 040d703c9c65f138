"""Requests for connection states: what is stored of responses and errors, and what is requested again."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import orjson
import pytest

from auditor.client.decoders import DEVICE_STATES_RESPONSE
from auditor.client.operations import Operation
from auditor.client.responses import ApiResponse, parse_response
from auditor.concurrency import StopToken
from auditor.engine.account_session import AccountSession
from auditor.errors import InvalidRequestError, NotFoundError, PlatformError
from auditor.models import CallResult
from auditor.selection.connectivity import fetch_connection_states
from tests.database import connect

pytestmark = pytest.mark.anyio

NOW = 1_763_000_000_000


class Platform:
    """Answers requests for states with one value for each request, as an account's session would."""

    name, workers = "eu", 1

    def __init__(self, *results: ApiResponse | PlatformError) -> None:
        self._results = list(results)
        self.requests: list[Mapping[str, str]] = []

    async def call_optional(self, _: Operation, parameters: Mapping[str, str]) -> CallResult[ApiResponse]:
        self.requests.append(parameters)
        return CallResult(self._results.pop(0), 1)

    def report_states(self, _: object) -> None:
        pass


def states_of(*names: str, key: str = "deviceName") -> ApiResponse:
    entries = [{key: name, "status": "OFFLINE", "timestamp": NOW} for name in names]
    body = orjson.dumps({"success": True, "deviceStatusList": {"deviceStatus": entries}})
    return parse_response(200, {}, body, now=0.0, response_type=DEVICE_STATES_RESPONSE)


def write_queries(path: Path, *rows: tuple[str | None, str | None, str | None]) -> None:
    with connect() as database:
        database.execute(
            "CREATE TEMP TABLE queries (account VARCHAR, product_key VARCHAR, device_name VARCHAR, iot_id VARCHAR)"
        )
        database.executemany("INSERT INTO queries VALUES ('eu', ?, ?, ?)", rows)
        database.execute(f"COPY queries TO '{path}' (FORMAT parquet)")


async def fetch(folder: Path, platform: Platform) -> dict[str, str | None]:
    """Request the states; return the status of each device that has one, None if it does not exist."""
    out = folder / "states.parquet"
    session = cast("AccountSession", platform)
    files = folder / "queries.parquet", folder / "states.jsonl", out
    await fetch_connection_states(session, *files, devices=2, stop=StopToken())
    with connect() as database:
        query = f"SELECT coalesce(iot_id, device_name), status FROM read_parquet('{out}')"
        return dict(database.execute(query).fetchall())


@pytest.mark.parametrize(
    ("code", "by_id", "states"),
    [
        ("iot.prod.NotExistedProduct", False, {"a": None, "b": None}),  # deleted with all its devices
        ("Iot.Prod.NotExistedProduct", False, {"a": None, "b": None}),
        ("iot.prod.NotExistedProduct", True, {}),
        ("iot.device.NotExistedDevice", False, {}),  # which of the two?
        ("iot.device.InvalidIoTId", True, {}),
    ],
)
async def test_error_about_one_device_says_nothing_about_the_others_of_its_request(
    tmp_path: Path, code: str, *, by_id: bool, states: dict[str, str | None]
) -> None:
    rows: list[Any] = [(None, None, name) if by_id else ("p", name, None) for name in ("a", "b")]
    write_queries(tmp_path / "queries.parquet", *rows)
    assert await fetch(tmp_path, Platform(NotFoundError(code))) == states


async def test_devices_without_a_usable_state_are_requested_again_and_the_others_are_not(tmp_path: Path) -> None:
    write_queries(tmp_path / "queries.parquet", ("p", "a", None), ("p", "b", None))
    assert await fetch(tmp_path, Platform(states_of("a", "c"))) == {"a": "OFFLINE"}
    again = Platform(states_of("b"))
    assert await fetch(tmp_path, again) == {"a": "OFFLINE", "b": "OFFLINE"}
    assert again.requests == [{"ProductKey": "p", "DeviceName.1": "b"}]
    assert await fetch(tmp_path, Platform()) == {"a": "OFFLINE", "b": "OFFLINE"}


async def test_failed_request_leaves_its_devices_unknown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_queries(tmp_path / "queries.parquet", (None, None, "x"), ("p", "a", None))
    platform = Platform(InvalidRequestError("Forbidden.RAM"), states_of("a"))
    assert await fetch(tmp_path, platform) in ({"a": "OFFLINE"}, {})
    output = capsys.readouterr()
    assert "connection states are unknown" in output.out + output.err


async def test_states_of_an_earlier_version_do_not_count_as_without_a_last_online_time(tmp_path: Path) -> None:
    write_queries(tmp_path / "queries.parquet", ("p", "a", None))
    row = {"product_key": "p", "device_name": "a", "iot_id": None, "status": "OFFLINE", "changed": NOW, "online": None}
    (tmp_path / "states.jsonl").write_bytes(orjson.dumps([row]) + b"\n")
    await fetch(tmp_path, Platform())
    with connect() as database:
        states = f"SELECT changed_ms, changed_form FROM read_parquet('{tmp_path / 'states.parquet'}')"
        assert database.execute(states).fetchall() == [(None, None)]  # unknown, and so it is queried
