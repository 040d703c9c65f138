"""The journal of lists: what is read from it again after a kill, and after a power cut."""

from collections.abc import Callable
from pathlib import Path

import orjson
import pytest

from auditor.models import Firmware, ListPage, UpdateJob, UpdateTask
from auditor.releases.list_journal import RELEASES_FOLDER, ListId, ListJournal

FIRMWARE = ListId("firmware", "eu", "k1")
TASKS = ListId("tasks", "eu", "job")


def firmware(number: int) -> Firmware:
    return Firmware(f"f{number}", None, "default", "1.1", None, None, None, None, number, None)


def task(number: int) -> UpdateTask:
    return UpdateTask(f"t{number}", "k1", f"d{number}", None, None, None, "FAILED", None, None, None, None)


def page_of(
    first: int, end: int, total: int | None, make: Callable[[int], Firmware | UpdateTask] = firmware
) -> ListPage[Firmware | UpdateJob | UpdateTask]:
    return ListPage(tuple(make(number) for number in range(first, end)), None, total, None)


def test_a_list_of_one_page_is_complete(tmp_path: Path) -> None:
    with ListJournal(tmp_path) as journal:
        reading = journal.reading(FIRMWARE)
        assert not reading.is_complete
        journal.record(reading, page_of(0, 3, 3))
        assert reading.is_complete
    with ListJournal(tmp_path) as journal:
        assert journal.reading(FIRMWARE).is_complete
        assert [*journal.read_items(FIRMWARE)] == [("f0", 0), ("f1", 1), ("f2", 2)]
        assert not journal.reading(ListId("firmware", "us", "k1")).is_complete
        assert not journal.reading(ListId("jobs", "eu", "k1")).is_complete


def test_a_resume_continues_with_the_next_page(tmp_path: Path) -> None:
    with ListJournal(tmp_path) as journal:
        journal.record(journal.reading(TASKS), page_of(0, 100, 250, task))
        journal.record(journal.reading(TASKS), page_of(100, 200, 250, task))
    with ListJournal(tmp_path) as journal:
        reading = journal.reading(TASKS)
        assert (reading.pager.next_page.page, reading.is_complete) == (3, False)
        journal.record(reading, page_of(200, 250, 250, task))
        assert reading.pager.next_page.page == 1  # the newest once more
        journal.record(reading, page_of(0, 100, 250, task))
        assert (reading.is_complete, reading.problem) == (True, None)


def test_an_item_that_is_listed_again_is_stored_once_and_a_replay_ends_alike(tmp_path: Path) -> None:
    pages = [(0, 100, 205), (100, 200, 205), (195, 205, 205), (0, 100, 205)]
    for stored in range(len(pages) + 1):
        folder = tmp_path / str(stored)
        folder.mkdir()
        with ListJournal(folder) as journal:
            for page in pages[:stored]:
                journal.record(journal.reading(TASKS), page_of(*page, task))
        with ListJournal(folder) as journal:
            for page in pages[stored:]:
                assert not journal.reading(TASKS).is_complete
                journal.record(journal.reading(TASKS), page_of(*page, task))
            assert (journal.reading(TASKS).is_complete, journal.reading(TASKS).problem) == (True, None)
        lines = (folder / RELEASES_FOLDER / "tasks.jsonl").read_bytes().splitlines()
        ids = [item["task_id"] for line in lines for item in orjson.loads(line)["items"]]
        assert ids == [f"t{number}" for number in range(205)]


def test_a_torn_or_damaged_line_is_read_again(tmp_path: Path) -> None:
    with ListJournal(tmp_path) as journal:
        for number in range(3):
            journal.record(journal.reading(ListId("firmware", "eu", f"k{number}")), page_of(number, number + 1, 1))
    path = tmp_path / RELEASES_FOLDER / "firmware.jsonl"
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    for end in range(len(content) + 1):
        path.write_bytes(content[:end])
        whole = content[:end].count(b"\n")
        with ListJournal(tmp_path) as journal:
            complete = [journal.reading(ListId("firmware", "eu", f"k{number}")).is_complete for number in range(3)]
        assert complete == [number < whole for number in range(3)]
        assert path.read_bytes() == b"".join(lines[:whole])
    path.write_bytes(lines[0] + b"\xff{}\n" + lines[2])
    with ListJournal(tmp_path) as journal:
        assert not journal.reading(ListId("firmware", "eu", "k2")).is_complete
        journal.record(journal.reading(ListId("firmware", "eu", "k1")), page_of(1, 2, 1))
    assert path.read_bytes() == lines[0] + lines[1]


def test_fewer_items_than_the_platform_counts_are_a_problem(tmp_path: Path) -> None:
    with ListJournal(tmp_path) as journal:
        reading = journal.reading(FIRMWARE)
        journal.record(reading, page_of(0, 2, 3))
        assert reading.is_complete
        assert reading.problem == "2 of 3 were listed"


@pytest.mark.parametrize("status", [None, "FAILED"])
def test_too_many_tasks_are_listed_by_status(tmp_path: Path, status: str | None) -> None:
    with ListJournal(tmp_path) as journal:
        reading = journal.reading(ListId("tasks", "eu", "job", status))
        assert not reading.is_divided
        journal.record(reading, page_of(0, 100, 100_001, task))
        assert reading.is_divided == reading.is_complete == (status is None)
