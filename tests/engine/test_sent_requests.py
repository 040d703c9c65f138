"""Requests that a run has sent: recorded before they are sent, whatever happens to the process."""

from dataclasses import replace
from pathlib import Path

import pytest

from auditor.client.operations import (
    BATCH_GET_DEVICE_STATE,
    LIST_OTA_MODULE_VERSIONS_BY_DEVICE,
    QUERY_DEVICE,
    QUERY_PRODUCT_LIST,
    RELEASE_OPERATIONS,
)
from auditor.engine.sent_requests import (
    SENT_REQUESTS,
    RequestKey,
    SentRequests,
    count_device_calls,
    count_sent,
    read_sent_requests,
    requests_before,
)
from auditor.errors import RunFolderError, RunNotWritableError
from auditor.runs.manifest import DiscoveryInfo, read_manifest
from auditor.runs.selection_info import AccountSelection, RequestCounts, SelectionInfo
from tests.runs.run_folders import named, running

VERSIONS = LIST_OTA_MODULE_VERSIONS_BY_DEVICE.quota_name


@pytest.mark.parametrize("reserved", [1, 7])
def test_a_kill_loses_no_request_and_adds_less_than_what_was_reserved(tmp_path: Path, reserved: int) -> None:
    key = RequestKey(VERSIONS, "eu")
    with SentRequests(tmp_path, {}) as sent:
        count = sent.counter(*key, reserved)
        for number in range(1, 30):
            count()
            recorded = read_sent_requests(tmp_path)[key]  # what a resume reads if the process is killed now
            assert number <= recorded < number + reserved
    assert read_sent_requests(tmp_path) == {key: 29}


def test_accounts_and_operations_are_counted_apart_over_several_processes(tmp_path: Path) -> None:
    names = ["eu", "", "名\n\"'", "eu2"]
    expected: dict[RequestKey, int] = {}
    for process in range(3):
        with SentRequests(tmp_path, read_sent_requests(tmp_path)) as sent:
            for place, account in enumerate(names[: process + 2]):
                for operation in (VERSIONS, QUERY_DEVICE.quota_name):
                    count = sent.counter(operation, account, 4)
                    for _ in range(place + 1):
                        count()
                    key = RequestKey(operation, account)
                    expected[key] = expected.get(key, 0) + place + 1
        assert read_sent_requests(tmp_path) == expected


def test_a_manifest_that_has_more_is_believed(tmp_path: Path) -> None:
    manifest = replace(
        read_manifest(running(tmp_path / "run", [named(0)], []).folder),
        requests=RequestCounts(sent=100),
        discovery=(DiscoveryInfo("eu", requests=RequestCounts(sent=7)),),
        selection=SelectionInfo("incremental", accounts=(AccountSelection("us", requests=RequestCounts(sent=5)),)),
    )
    with SentRequests(tmp_path, {}) as sent:
        for operation, account, times in (
            (VERSIONS, "eu", 60),
            (VERSIONS, "us", 30),
            (QUERY_DEVICE.quota_name, "eu", 9),
            (BATCH_GET_DEVICE_STATE.quota_name, "us", 2),
        ):
            count = sent.counter(operation, account, 1)
            for _ in range(times):
                count()
    before = requests_before(tmp_path, manifest)
    assert count_sent(before, [LIST_OTA_MODULE_VERSIONS_BY_DEVICE]) == 100
    assert count_sent(before, [QUERY_DEVICE, QUERY_PRODUCT_LIST], "eu") == 9
    assert count_sent(before, [BATCH_GET_DEVICE_STATE], "us") == 5
    assert sum(before.values()) == 114


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 100,
        b"12\n",
        b'x ["a","b"]\n',
        b"7 {}\n7 [1]\n7 [[],2,3]\n",
        b'-5 ["a","b"]\n',
        b'7 ["a","b"]\n',
        b"9" * 5_000 + b' ["a","b"]\n',
    ],
)
def test_lines_that_cannot_be_read_are_left_out(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SENT_REQUESTS).write_bytes(content + b'0000000000000000012 ["ListX","eu"]\n')
    continues_a_line = content and not content.endswith(b"\n")
    assert read_sent_requests(tmp_path) == ({} if continues_a_line else {RequestKey("ListX", "eu"): 12})


def test_a_number_that_no_run_reaches_is_bounded(tmp_path: Path) -> None:
    (tmp_path / SENT_REQUESTS).write_bytes(b"9" * 19 + b' ["a","b"]\n')
    assert read_sent_requests(tmp_path) == {RequestKey("a", "b"): 10**12}


def test_a_link_is_neither_read_nor_written(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / SENT_REQUESTS).symlink_to(precious)
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_sent_requests(tmp_path / "run")
    with SentRequests(tmp_path / "run", {}) as sent:
        sent.counter(VERSIONS, "eu", 1)()
    assert precious.read_text() == "mine"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunNotWritableError), SentRequests(tmp_path / "missing", {}):
        pass


def test_requests_for_releases_do_not_count_for_a_budget_of_calls() -> None:
    counts = {RequestKey(VERSIONS, "eu"): 5, RequestKey("QueryProductList", "eu"): 2}
    counts |= {RequestKey(operation.quota_name, "eu"): 100 for operation in RELEASE_OPERATIONS}
    assert count_device_calls(counts) == 7
