"""Reads the lists of one account: the firmware of its products, the jobs of that, and the tasks of jobs.

Nothing here raises an error of the platform: what cannot be read is a problem that the run records.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import anyio

from auditor.client.error_codes import classify_error
from auditor.client.operations import LIST_OTA_FIRMWARE, LIST_OTA_JOB_BY_FIRMWARE, LIST_OTA_TASK_BY_JOB, Operation
from auditor.client.parsers import parse_firmware, parse_jobs, parse_tasks
from auditor.client.responses import ApiResponse
from auditor.concurrency import StopToken
from auditor.engine.account_session import AccountSession
from auditor.engine.worker_pool import discard, run_workers
from auditor.errors import AccountDeniedError, AccountStoppedError, NotFoundError, PlatformError
from auditor.fleet.crawler import fetch_page
from auditor.models import ListPage
from auditor.releases.list_journal import ListId, ListJournal, ListName, ListReading, status_lists
from auditor.text.formatting import format_count

LISTS_CONCURRENCY = 8
"""Lists that are read concurrently: enough for the quotas of their operations."""

MAX_FAILED_LISTS = 3
"""Lists that may fail until an operation is abandoned: each of them took all attempts of a request."""

_OPERATIONS: dict[ListName, Operation] = {
    "firmware": LIST_OTA_FIRMWARE,
    "jobs": LIST_OTA_JOB_BY_FIRMWARE,
    "tasks": LIST_OTA_TASK_BY_JOB,
}
_KEY_PARAMETERS: dict[ListName, str] = {"firmware": "ProductKey", "jobs": "FirmwareId", "tasks": "JobId"}
_PARSERS: dict[ListName, Callable[[ApiResponse, str], ListPage[Any]]] = {
    "firmware": parse_firmware,
    "jobs": parse_jobs,
    "tasks": parse_tasks,
}


class ListReader:
    """Reads the remaining pages of the lists of one account.

    ``oldest_job`` is the earliest creation of an ended job whose tasks are read, in milliseconds since 1970, and
    ``patience`` how many seconds one page may take. The end of reading may be requested by ``stop``. ``count_page`` is
    called after each page.

    Attributes:
        problems: why lists are incomplete, a sentence each.
    """

    def __init__(
        self,
        session: AccountSession,
        journal: ListJournal,
        *,
        oldest_job: float,
        patience: float,
        stop: StopToken,
        count_page: Callable[[], None],
    ) -> None:
        self._session, self._journal, self._stop, self._count_page = session, journal, stop, count_page
        self._oldest_job, self._patience = oldest_job, patience
        self.problems: list[str] = []
        self._failed: Counter[str] = Counter()
        self._abandoned: set[str] = set()

    async def read(self, product_keys: Iterable[str]) -> None:
        """Read the firmware of products, its jobs, and the tasks of the jobs that are in progress or not too old.

        Raises:
            RunNotWritableError: the journal cannot be written.
        """
        account = self._session.name
        try:
            firmware = [ListId("firmware", account, key) for key in product_keys]
            await self._read_lists(firmware)
            ids = (each for list_id in firmware for each, _ in self._journal.read_items(list_id))
            jobs = [ListId("jobs", account, firmware_id) for firmware_id in dict.fromkeys(ids)]
            await self._read_lists(jobs)
            tasks = [ListId("tasks", account, job_id) for job_id in self._recent_jobs(jobs)]
            await self._read_lists(tasks)
            divided = [list_id for list_id in tasks if self._journal.reading(list_id).is_divided]
            await self._read_lists([each for list_id in divided for each in status_lists(list_id)])
        except AccountStoppedError as error:
            self.problems.append(error.sentence)

    def _recent_jobs(self, jobs: Iterable[ListId]) -> Iterator[str]:
        """Yield the ids of jobs whose tasks are read: also those in progress, and those of an unknown age."""
        for list_id in jobs:
            for job_id, created in self._journal.read_items(list_id):
                if created is None or created >= self._oldest_job:
                    yield job_id

    async def _read_lists(self, list_ids: list[ListId]) -> None:
        """Read the remaining pages of lists of one operation; the first one alone, for it may not be permitted."""
        readings = [reading for each in list_ids if not (reading := self._journal.reading(each)).is_complete]
        for some in (readings[:1], readings[1:]):
            concurrency = max(1, min(LISTS_CONCURRENCY, len(some)))
            await run_workers(iter(some), self._read_list, discard, concurrency=concurrency, stop=self._stop)
        unread = [each for each in readings if not each.is_complete]
        if unread and self._stop.reason is not None:
            self.problems.append(f"{self._stop.reason}; {format_count(len(unread), 'list')} remained")
        for list_id in list_ids:
            if (problem := self._journal.reading(list_id).problem) is not None:
                status = "" if list_id.status is None else f" ({list_id.status})"
                self.problems.append(f"{list_id.name} of {list_id.key}{status}: {problem}")

    async def _read_list(self, reading: ListReading) -> None:
        name = reading.list_id.name
        while not reading.is_complete and self._stop.reason is None and name not in self._abandoned:
            try:
                with anyio.fail_after(self._patience):
                    page = await self._fetch_page(reading)
            except TimeoutError:
                if name not in self._abandoned:
                    self._abandon(name, f"gave no answer within {self._patience:g} seconds")
                return
            if isinstance(page, NotFoundError):  # deleted after it was listed
                page = ListPage((), None, 0, None)
            if isinstance(page, PlatformError):
                self._record_failure(name, page)
                return
            self._journal.record(reading, page)
            self._count_page()

    async def _fetch_page(self, reading: ListReading) -> ListPage[Any] | PlatformError:
        list_id, place = reading.list_id, reading.pager.next_page
        operation = _OPERATIONS[list_id.name]
        parameters = {
            _KEY_PARAMETERS[list_id.name]: list_id.key,
            "CurrentPage": str(place.page),
            "PageSize": str(operation.page_size),
        }
        if list_id.status is not None:
            parameters["TaskStatus"] = list_id.status

        def parse(response: ApiResponse) -> ListPage[Any]:
            return _PARSERS[list_id.name](response, list_id.key)

        return await fetch_page(self._session.call_optional, operation, parameters, place, parse)

    def _record_failure(self, name: ListName, error: PlatformError) -> None:
        """Record why a list could not be read; abandon its operation if others will fail, too."""
        if name in self._abandoned:
            return
        if issubclass(classify_error(error.code), AccountDeniedError):
            operation = _OPERATIONS[name].name
            advice = f"allow iot:{operation} for the access key, or leave out released"
            self._abandon(name, f"is not permitted ({error}); {advice}")
            return
        self._failed[name] += 1
        if self._failed[name] == MAX_FAILED_LISTS:
            self._abandon(name, f"failed for {MAX_FAILED_LISTS} lists, the last time with {error}")
        elif self._failed[name] < MAX_FAILED_LISTS:
            self.problems.append(f"{_OPERATIONS[name].name} failed: {error}")

    def _abandon(self, name: ListName, reason: str) -> None:
        """Record a problem after which no more pages of an operation are requested."""
        self._abandoned.add(name)
        self.problems.append(f"{_OPERATIONS[name].name} {reason}")
