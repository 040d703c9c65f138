"""Journal of the lists of firmware, jobs and tasks in a run folder: the pages that the platform returned.

A page counts once its line is written. A resume replays the pages in their order and requests the next one of each
list, so that no page that was received is requested again. Lists that could not be read are requested again.
"""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self, get_args

import msgspec
import orjson

from auditor.client.operations import (
    LIST_OTA_FIRMWARE,
    LIST_OTA_JOB_BY_FIRMWARE,
    LIST_OTA_TASK_BY_JOB,
    MAX_LISTED_TASKS,
    TASK_STATUSES,
)
from auditor.fleet.pager import Pager
from auditor.models import Firmware, ListPage, UpdateJob, UpdateTask
from auditor.storage.append_only import AppendOnlyFile, cut_torn_line
from auditor.storage.files import open_contained, translate_os_errors

RELEASES_FOLDER = ".releases"
"""Folder in the run folder with the pages, until the run has no more devices to query."""

MAX_LISTED = 100_000
"""Firmware of a product, and jobs of a firmware, that are listed at most; each takes some hundred bytes."""

ListName = Literal["firmware", "jobs", "tasks"]

_PAGE_SIZES: dict[ListName, int] = {
    "firmware": LIST_OTA_FIRMWARE.page_size,
    "jobs": LIST_OTA_JOB_BY_FIRMWARE.page_size,
    "tasks": LIST_OTA_TASK_BY_JOB.page_size,
}

Item = Firmware | UpdateJob | UpdateTask


@dataclass(frozen=True, slots=True)
class ListId:
    """One list: the firmware of a product, the jobs of a firmware, or the tasks of a job, of one status or all.

    ``key`` is the product key, firmware id or job id.
    """

    name: ListName
    account: str
    key: str
    status: str | None = None


class ListReading:
    """How far one list was read.

    Attributes:
        list_id: the list.
        pager: determines the next page.
        pages: pages that were read.
    """

    def __init__(self, list_id: ListId) -> None:
        self.list_id, self.pages, self._listed = list_id, 0, 0
        self._keys: set[str] = set()  # of the items that were listed, while there are pages left
        max_items = MAX_LISTED_TASKS if list_id.name == "tasks" else MAX_LISTED
        self.pager = Pager(_PAGE_SIZES[list_id.name], max_by_page_number=None, max_items=max_items)

    def is_new(self, key: str) -> bool:
        """Return whether no page had an item of this key; a list that changes while it is read has some twice."""
        return key not in self._keys

    def add_page(self, keys: tuple[str, ...], total: int | None) -> None:
        """Add a page by the keys of its items."""
        self.pages += 1
        if self.is_complete:
            return
        self.pager.add_page(ListPage(keys, None, total, None))
        self._keys.update(keys)
        self._listed = len(self._keys)
        if self.is_complete:
            self._keys.clear()

    @property
    def problem(self) -> str | None:
        """Why a list that was read to its end may be incomplete."""
        expected = self.pager.least_total or 0
        if self.is_divided or not self.is_complete:
            return None
        missing = f"{self._listed:,} of {expected:,} were listed" if self._listed < expected else None
        return self.pager.problem or missing

    @property
    def is_divided(self) -> bool:
        """Whether the tasks of a job are too many for one list, so that they are listed by status instead."""
        unfiltered = self.list_id.name == "tasks" and self.list_id.status is None
        return unfiltered and self.pages > 0 and (self.pager.total or 0) > MAX_LISTED_TASKS

    @property
    def is_complete(self) -> bool:
        """Whether no page is left to request."""
        return self.is_divided or self.pager.phase == "ended"


class _StoredItem(msgspec.Struct):
    """What a replay needs of an item."""

    firmware_id: str | None = None
    job_id: str | None = None
    task_id: str | None = None
    product_key: str | None = None
    device_name: str | None = None
    iot_id: str | None = None
    created: int | None = None
    status: str | None = None


class _StoredPage(msgspec.Struct):
    """A line of the journal. ``keys`` are those of the whole page, if some of its items were listed before."""

    account: str
    key: str
    items: tuple[_StoredItem, ...]
    status: str | None = None
    total: int | None = None
    keys: tuple[str, ...] | None = None


class ListJournal:
    """The lists of a run. Use as a context manager, which replays the files of the run folder.

    Raises RunNotWritableError if they cannot be read or written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / RELEASES_FOLDER
        self._readings: dict[ListId, ListReading] = {}
        self._items: dict[ListId, dict[str, int | None]] = {}
        self._stack = ExitStack()
        self._files: dict[ListName, AppendOnlyFile] = {}

    def __enter__(self) -> Self:
        with self._stack:
            with translate_os_errors(f"{self.folder}: cannot be written"):
                self.folder.mkdir(0o700, exist_ok=True)
            for name in get_args(ListName):
                path = self.folder / f"{name}.jsonl"
                if path.exists():
                    self._replay(name, path)
                self._files[name] = AppendOnlyFile(path)
                self._stack.callback(self._files[name].close)
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def reading(self, list_id: ListId) -> ListReading:
        """Return how far a list was read."""
        return self._readings.setdefault(list_id, ListReading(list_id))

    def read_items(self, list_id: ListId) -> Iterator[tuple[str, int | None]]:
        """Yield the ids of the firmware or jobs in a list, and when they were created, in ms since 1970.

        A job that is in progress has no such time: its tasks change, however old it is.
        """
        yield from self._items.get(list_id, {}).items()

    @property
    def has_divided_lists(self) -> bool:
        """Whether the tasks of a job were listed by status, so that one may be in two lists."""
        return any(list_id.status is not None for list_id in self._readings)

    def record(self, reading: ListReading, page: ListPage[Item]) -> None:
        """Write the items of a page that are new; once this returns, killing the process cannot lose them."""
        list_id, name = reading.list_id, reading.list_id.name
        items = {_item_key(name, msgspec.convert(item, _StoredItem, from_attributes=True)): item for item in page.items}
        new = {key: item for key, item in items.items() if reading.is_new(key)}
        line: dict[str, object] = {"account": list_id.account, "key": list_id.key, "status": list_id.status}
        line |= {"total": page.total, "keys": None if len(new) == len(page.items) else list(items)}
        line["items"] = list(new.values())
        self._files[name].append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self._add(name, msgspec.convert(line, _StoredPage, from_attributes=True))

    def _replay(self, name: ListName, path: Path) -> None:
        """Add the pages of a file, which is cut at the first line that cannot be read."""
        decoder = msgspec.json.Decoder(_StoredPage)
        with translate_os_errors(f"{path}: cannot be read"):
            cut_torn_line(path)
            kept = 0
            with open_contained(path.parent, path.name) as file:
                for line in file:
                    try:
                        self._add(name, decoder.decode(line))
                    except (msgspec.MsgspecError, UnicodeDecodeError):
                        break
                    kept += len(line)
            os.truncate(path, kept)

    def _add(self, name: ListName, page: _StoredPage) -> None:
        reading = self.reading(ListId(name, page.account, page.key, page.status))
        keys = tuple(_item_key(name, item) for item in page.items)
        reading.add_page(page.keys or keys, page.total)
        if name != "tasks":
            found = self._items.setdefault(reading.list_id, {})
            for key, item in zip(keys, page.items, strict=True):
                found[key] = None if name == "jobs" and item.status == "IN_PROGRESS" else item.created


def _item_key(name: ListName, item: _StoredItem) -> str:
    if name == "tasks":
        return item.task_id or item.iot_id or f"{item.product_key}/{item.device_name}"
    return (item.firmware_id if name == "firmware" else item.job_id) or ""


def status_lists(list_id: ListId) -> Iterator[ListId]:
    """Yield the lists, by status, of the tasks of a job that has too many for one list."""
    for status in TASK_STATUSES:
        yield ListId("tasks", list_id.account, list_id.key, status)
