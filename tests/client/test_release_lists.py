"""Lists of firmware, update jobs and tasks: every documented form, and values that no document has."""

from typing import Any

import msgspec
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from auditor.client.operations import LIST_OTA_FIRMWARE, LIST_OTA_JOB_BY_FIRMWARE, LIST_OTA_TASK_BY_JOB, Operation
from auditor.client.parsers import parse_firmware, parse_jobs, parse_tasks
from auditor.client.responses import INVALID_JSON, parse_response
from auditor.errors import InconsistentResponseError, PlatformError
from auditor.models import Firmware, ListPage, UpdateJob, UpdateTask

CREATED = "2026-01-02T03:04:05.000Z"
AT = 1_767_323_045_000
"""The same in milliseconds since 1970."""

FIRMWARE = {
    "firmwareId": "f1", "firmwareName": "Lamp", "firmwareSize": 924, "moduleName": "ble", "productKey": "p1",
    "srcVersion": "1.0", "destVersion": "1.1", "status": 1, "type": 1, "utcCreate": CREATED, "utcModified": CREATED,
    "firmwareSign": "kept nowhere",
}  # fmt: skip
READ_FIRMWARE = Firmware("f1", "Lamp", "ble", "1.1", "1.0", "verified", "difference", 924, AT, AT)

JOB = {
    "jobId": "j1", "firmwareId": "f1", "productKey": "p1", "jobStatus": "IN_PROGRESS", "jobType": "UPGRADE_FIRMWARE",
    "selectionType": "STATIC", "targetSelection": "GRAY", "utcCreate": CREATED, "utcStartTime": CREATED,
    "tags": {"otaTagDTO": [{"key": "a", "value": "b"}]},
}  # fmt: skip
READ_JOB = UpdateJob("j1", "IN_PROGRESS", "UPGRADE_FIRMWARE", "STATIC", "GRAY", AT, AT, None)

TASK = {
    "taskId": "t1", "jobId": "j1", "firmwareId": "f1", "productKey": "p1", "deviceName": "lamp-1", "iotId": "i1",
    "srcVersion": "1.0", "destVersion": "1.1", "taskStatus": "FAILED", "taskDesc": "the battery is low",
    "progress": "7", "utcCreate": CREATED, "utcModified": CREATED, "timeout": "60",
}  # fmt: skip
READ_TASK = UpdateTask("t1", "p1", "lamp-1", "i1", "1.0", "1.1", "FAILED", "the battery is low", 7, AT, AT)

LISTS: dict[str, tuple[Operation, Any, str, dict[str, Any], Any]] = {
    "firmware": (LIST_OTA_FIRMWARE, parse_firmware, "p1", FIRMWARE, READ_FIRMWARE),
    "jobs": (LIST_OTA_JOB_BY_FIRMWARE, parse_jobs, "f1", JOB, READ_JOB),
    "tasks": (LIST_OTA_TASK_BY_JOB, parse_tasks, "j1", TASK, READ_TASK),
}
WRAPPERS = {"firmware": "simpleFirmwareInfo", "jobs": "simpleOTAJobInfo", "tasks": "simpleOTATaskInfo"}
IDS = {"firmware": {"firmwareId"}, "jobs": {"jobId"}, "tasks": {"iotId"}}

lists = pytest.mark.parametrize("name", LISTS)


def read(name: str, document: object) -> ListPage[Any]:
    operation, parse, key, *_ = LISTS[name]
    answer = parse_response(200, {}, orjson.dumps(document), now=0.0, response_type=operation.response_type)
    page: ListPage[Any] = parse(answer, key)
    return page


def wrapped(name: str, entries: object) -> dict[str, Any]:
    place = "firmwareInfo" if name == "firmware" else "data"
    return {"success": True, "total": 1, "currentPage": 1, place: {WRAPPERS[name]: entries}}


def with_capitals(value: Any) -> Any:
    if isinstance(value, dict):
        return {key[0].upper() + key[1:]: with_capitals(each) for key, each in value.items()}
    return [with_capitals(each) for each in value] if isinstance(value, list) else value


@lists
def test_an_entry_is_read_in_both_dialects(name: str) -> None:
    *_, entry, expected = LISTS[name]
    for document in (wrapped(name, [entry]), with_capitals(wrapped(name, [entry]))):
        assert read(name, document) == ListPage((expected,), 1, 1, None)


@lists
def test_the_array_is_found_wherever_documents_have_it(name: str) -> None:
    *_, entry, expected = LISTS[name]
    place = "firmwareInfo" if name == "firmware" else "data"
    for document in ({place: [entry]}, {"data": {WRAPPERS[name]: [entry]}}, {"data": [entry]}):
        assert read(name, {"success": True, **document}).items == (expected,)
    absent: list[Any] = [None, [], {}, "", {WRAPPERS[name]: None}, {WRAPPERS[name]: []}]
    for none in absent:
        assert read(name, {"success": True, place: none}).items == ()


@lists
def test_numbers_may_be_texts_and_members_may_be_null_or_missing(name: str) -> None:
    *_, entry, expected = LISTS[name]
    texts = {key: str(value) if isinstance(value, int) else value for key, value in entry.items()}
    page = read(name, {**wrapped(name, [texts]), "total": "1", "currentPage": "1"})
    assert page == ListPage((expected,), 1, 1, None)
    nulls = {key: value if key in IDS[name] else None for key, value in entry.items()}
    bare = {key: value for key, value in entry.items() if key in IDS[name]}
    assert read(name, wrapped(name, [nulls])).items == read(name, wrapped(name, [bare])).items
    (found,) = read(name, wrapped(name, [bare])).items
    known = {field for field in found.__slots__ if getattr(found, field) is not None}
    assert known == {"firmware": {"firmware_id", "module_name"}, "jobs": {"job_id"}, "tasks": {"iot_id"}}[name]


@lists
def test_members_of_other_types_cost_no_other_member(name: str) -> None:
    *_, entry, expected = LISTS[name]
    for key in entry:
        for odd in ({"a": 1}, [1], True, 1.5):
            for each in read(name, wrapped(name, [{**entry, key: odd}])).items:
                different = [field for field in each.__slots__ if getattr(each, field) != getattr(expected, field)]
                assert len(different) <= 1


@pytest.mark.parametrize(("name", "about"), [("firmware", "productKey"), ("jobs", "firmwareId"), ("tasks", "jobId")])
def test_entries_about_something_else_are_left_out_unless_all_are(name: str, about: str) -> None:
    *_, entry, expected = LISTS[name]
    other = {**entry, about: "other"}
    own = {**entry, "taskId": "t1"}
    assert read(name, wrapped(name, [other, own])).items == (expected,)
    with pytest.raises(InconsistentResponseError, match="got an answer about another one"):
        read(name, wrapped(name, [other, other]))


def test_a_message_and_a_status_are_one_printable_line_of_bounded_length() -> None:
    odd = {**TASK, "taskDesc": "a\x1b[31m\n\tb" + "x" * 10_000, "taskStatus": " failed\x00 "}
    (task,) = read("tasks", wrapped("tasks", [odd])).items
    assert task.message.startswith("a [31m b")
    assert len(task.message) <= 300
    assert task.message.isprintable()
    assert task.status == "FAILED"


@pytest.mark.parametrize(
    ("status", "word"),
    [(-1, "not_needed"), ("0", "unverified"), (2, "verifying"), (3, "failed"), (9, "9"), (None, None)],
)
def test_the_status_of_firmware_is_a_word(status: object, word: str | None) -> None:
    (found,) = read("firmware", wrapped("firmware", [{**FIRMWARE, "status": status}])).items
    assert found.verification == word


numbers = st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20).filter(lambda text: text.isprintable()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from([*FIRMWARE, *JOB, *TASK, *WRAPPERS.values()]), inner, max_size=6)
    ),
    max_leaves=20,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(entries=st.lists(anything, max_size=4), total=numbers | st.none() | st.text(max_size=5))
def test_whatever_is_listed_is_a_page_or_an_inconsistency(entries: list[Any], total: Any) -> None:
    for name in LISTS:
        try:
            page = read(name, {**wrapped(name, entries), "total": total})
        except InconsistentResponseError:
            continue
        except PlatformError as error:
            assert error.code == INVALID_JSON  # noqa: PT017  an array of arrays is of no documented shape
            continue
        assert page.total is None or page.total >= 0
        msgspec.json.encode(page.items)
