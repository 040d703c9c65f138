"""Released firmware of a run: read after its devices, written to its folder, and never a reason for a run to fail."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from auditor.client.operations import RELEASE_OPERATIONS
from auditor.concurrency import StopToken, run_in_thread, unwrapping_task_group
from auditor.config.settings import Settings
from auditor.engine.account_session import AccountSession
from auditor.engine.run_state import RunState
from auditor.errors import AuditorError
from auditor.log import log
from auditor.releases.list_journal import RELEASES_FOLDER, ListJournal
from auditor.releases.list_reader import ListReader
from auditor.releases.release_tables import (
    WORK,
    read_product_keys,
    remove_release_tables,
    write_release_tables,
)
from auditor.runs.selection_info import ReleasesInfo
from auditor.runs.views import ReleaseCounts
from auditor.text.durations import parse_duration
from auditor.text.formatting import escape_undecodable
from auditor.tracing import span


class ReleaseCollector:
    """Reads the released firmware of all accounts, the update jobs, and their tasks, and records them in ``state``.

    An account that was stopped is skipped, and so is a run that a flag has ``limited`` to some devices, for the tasks
    of a job are those of all devices. All errors become problems that the manifest has as warnings.

    Attributes:
        pages: pages that this process has read; None while it reads none.
    """

    def __init__(self, settings: Settings, folder: Path, state: RunState, *, limited: bool) -> None:
        self._settings, self._folder, self._state, self._limited = settings, folder, state, limited
        self.pages: int | None = None

    async def collect(self, sessions: Sequence[AccountSession], stop: StopToken) -> None:
        """Read what is not read yet, of all accounts concurrently, and write the tables of the run."""
        if not self._settings.released or self._limited:
            return
        infos = {session.name: ReleasesInfo(session.name) for session in sessions}
        if stop.reason is not None and not (self._folder / RELEASES_FOLDER).exists():
            missed = (f"{stop.reason}; nothing was read",)
            self._state.record_releases(tuple(replace(info, problems=missed) for info in infos.values()))
            return
        self.pages = 0
        try:
            product_keys = await run_in_thread(read_product_keys, self._folder)
            with ListJournal(self._folder) as journal:
                async with unwrapping_task_group() as group:
                    for session in sessions:
                        keys = product_keys.get(session.name, [])
                        group.start_soon(self._read_account, session, keys, journal, stop, infos)
            counts = await run_in_thread(write_release_tables, self._folder, divided=journal.has_divided_lists)
        except Exception as error:  # noqa: BLE001  nothing here may cost a run its devices
            counts = {}
            remove_release_tables(self._folder)  # those of an earlier session have other numbers
            reason = str(error) if isinstance(error, AuditorError) else f"{type(error).__name__}: {error}"
            infos = {name: replace(info, problems=(*info.problems, reason)) for name, info in infos.items()}
        self.pages = None
        for name, info in infos.items():
            problems = tuple(map(escape_undecodable, info.problems))
            infos[name] = replace(info, problems=problems, **counts.get(name, ReleaseCounts())._asdict())
        self._state.record_releases(tuple(infos.values()))
        for info in infos.values():
            for warning in info.warnings():
                log.warning("releases_incomplete", reason=warning.detail)

    async def _read_account(
        self,
        session: AccountSession,
        product_keys: Sequence[str],
        journal: ListJournal,
        stop: StopToken,
        infos: dict[str, ReleasesInfo],
    ) -> None:
        with span("releases", {"auditor.account.name": session.name}):
            infos[session.name] = await self._read_releases(session, product_keys, journal, stop, infos[session.name])

    async def _read_releases(
        self,
        session: AccountSession,
        product_keys: Sequence[str],
        journal: ListJournal,
        stop: StopToken,
        info: ReleasesInfo,
    ) -> ReleasesInfo:
        problems = [session.stopped] if session.stopped is not None else []
        if not problems:
            max_age = parse_duration(self._settings.max_job_age)
            reader = ListReader(
                session,
                journal,
                oldest_job=(session.platform_time() - max_age) * 1000,
                patience=self._settings.give_up_after,
                stop=stop,
                count_page=self._count_page,
            )
            await reader.read(product_keys)
            problems = reader.problems
        sent = session.sent_before(*RELEASE_OPERATIONS) + session.request_stats(*RELEASE_OPERATIONS).sent
        return replace(info, requests=sent, problems=tuple(problems))

    def _count_page(self) -> None:
        self.pages = (self.pages or 0) + 1

    def cleanup(self) -> None:
        """Remove the pages of a run that is not resumed any more."""
        for name in (RELEASES_FOLDER, WORK):
            shutil.rmtree(self._folder / name, ignore_errors=True)
