"""Selection of the devices that a run queries, from the first account to the end of the run.

A selection is in the run folder before its devices are queried: ``plan.parquet`` has the selected devices, in order,
and ``carried.parquet`` the previous results of others. A process that is killed before that selects again, without
repeating requests for connection states. After that a resumed run continues with the selected devices.
"""

import hashlib
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import anyio

from auditor.bulk.index_results import INDEX_FOLDER, index_results_path
from auditor.concurrency import StopToken, TimeLimit, run_in_thread
from auditor.config.settings import Settings, parse_percentage
from auditor.engine.account_session import AccountSession
from auditor.engine.allocation import CallBudget
from auditor.log import log
from auditor.models import Device
from auditor.planning.capacity import plan_queries
from auditor.planning.measurements import latest_measurements
from auditor.runs.folder import CARRIED, CONNECTIONS, FLEET, SELECTED
from auditor.runs.locking import PreparedRun
from auditor.runs.selection_info import Planned, SelectionInfo
from auditor.selection.baseline import Baseline
from auditor.selection.budget import BudgetEstimator
from auditor.selection.rejection import RejectedResults, reject_index_results
from auditor.selection.selection_files import SelectionFiles, count_selected, finalize_selection, merge_account
from auditor.selection.selector import DeviceSelector
from auditor.selection.stopping import Fetch, StoppingRule
from auditor.selection.strategies import (
    IncrementalStrategy,
    IndexStrategy,
    RollingStrategy,
    SampleStrategy,
    SelectionContext,
    SelectionResult,
    SelectionStrategy,
)
from auditor.storage.files import put_in_place, translate_os_errors

WORK = ".selection"
"""Folder in the run folder for previous results and connection states, until the run has ended."""


class SelectionCoordinator:
    """Selects devices account by account, limits the queries, and finalizes the selection. It owns no state of the run.

    ``selection`` has the strategy, and the accounts whose devices an earlier process selected. The list ``accounts``
    may grow. ``calls_before`` were sent by earlier processes.

    Every method raises RunNotWritableError if the run folder cannot be read or written.
    """

    def __init__(
        self,
        settings: Settings,
        prepared: PreparedRun,
        selection: SelectionInfo,
        accounts: Sequence[AccountSession],
        *,
        calls_before: int,
        time_limit: TimeLimit,
    ) -> None:
        self._settings, self._folder, self._accounts = settings, prepared.folder, accounts
        self._seed, self._work = selection.seed, prepared.folder / WORK
        self._selected = {each.account for each in selection.accounts}
        self._account_settings = {account.name: account for account in settings.account}
        self._measurements = latest_measurements(prepared.folder.parent, settings.name)
        self._call_budget = CallBudget(settings, accounts, calls_before)
        self._strategy = self._strategy_for(selection, time_limit, discovers=bool(prepared.manifest.discovery))
        self._stopping_rule: StoppingRule | None = None
        if selection.precision is not None:
            self._stopping_rule = StoppingRule(settings, self._folder, selection, resumed=prepared.resumed)
        self._merging = anyio.Lock()

    def _strategy_for(self, selection: SelectionInfo, time_limit: TimeLimit, *, discovers: bool) -> SelectionStrategy:
        if selection.strategy == "sample":
            return SampleStrategy(self._settings, None if discovers else self._folder / FLEET)
        if selection.strategy == "index":
            return IndexStrategy(self._settings, self._folder)
        run = None if selection.baseline_run is None else self._folder.parent / selection.baseline_run
        policy = self._settings.policy
        baseline = Baseline(run, self._work / "baseline.parquet", None if policy is None else policy.file)
        budget = BudgetEstimator(self._settings, self._measurements, time_limit)
        if selection.strategy == "incremental":
            return IncrementalStrategy(self._settings, self._folder, baseline, budget)
        return RollingStrategy(baseline, budget)

    @property
    def reason(self) -> str | None:
        """Why selected devices were not queried, if the call budget is the reason."""
        return self._call_budget.reason

    async def select(
        self, session: AccountSession, devices: Path, *, include_never_activated: bool, stop: StopToken
    ) -> SelectionResult | None:
        """Select the devices of an account among those in a file; return None if the run was interrupted first.

        ``include_never_activated``: devices that were never activated are candidates, too.

        Raises:
            AccountStoppedError: the account is denied access, or was never reached.
            RunNotWritableError: the run folder cannot be written, or the baseline run cannot be read.
        """
        name = session.name
        if name in self._selected:
            return SelectionResult(devices)
        work = self._work / hashlib.sha256(name.encode()).hexdigest()[:16]
        files = SelectionFiles(work / "queue.parquet", work / SELECTED, work / CARRIED, work / CONNECTIONS)
        selector = await run_in_thread(
            DeviceSelector, work, name, devices, include_never_activated=include_never_activated, seed=self._seed
        )
        with selector:
            context = SelectionContext(self._account_settings[name], session, selector, files, work, stop)
            result = await self._strategy.select(context)
        return None if result is None else await self._merge(result, files)

    async def _merge(self, result: SelectionResult, files: SelectionFiles) -> SelectionResult:
        """Add an account's selected devices and carried results to the files of the run; return the result, counted."""
        if result.account is None:
            return result
        async with self._merging:
            for part in files.run_files:
                target = self._folder / part.name
                new = target.with_name(f"{target.name}.new")
                await run_in_thread(merge_account, part, target, result.account.account, new)
                await run_in_thread(_replace_file, new, target)  # durably: the manifest will refer to it
            selected, carried = await run_in_thread(count_selected, files.selected, files.carried)
        account = replace(result.account, selected=selected, carried=sum(carried.values()))
        return replace(result, account=account, carried=carried)

    def estimate_cost(self, selection: SelectionInfo) -> Planned:
        """Return the estimated cost of the devices that were selected so far."""
        devices = {each.account: sum(each.selected.values()) for each in selection.accounts}
        return plan_queries(self._settings, devices, self._measurements).planned

    async def limit_queries(self, session: AccountSession, devices: Iterator[Device]) -> tuple[Iterator[Device], Fetch]:
        """Return an account's devices up to the call budget and the precision, and the function that queries one."""
        devices = self._call_budget.limit(devices)
        session.limit_retries(self._call_budget.may_retry)
        if self._stopping_rule is None:
            return devices, session.fetch
        await self._stopping_rule.add_account(session.name)
        return self._stopping_rule.take_until_satisfied(devices), self._stopping_rule.counting(session.fetch)

    def may_reject(self, session: AccountSession, selection: SelectionInfo) -> bool:
        """Return whether an account's results depend on the index, and are rejected if the recheck shows an error."""
        has_results = index_results_path(self._folder, session.name).exists()
        is_auto = self._account_settings[session.name].read == "auto"
        return is_auto and has_results and selection.strategy != "sample" and (self._folder / CARRIED).exists()

    async def reject_results(self, session: AccountSession, selection: SelectionInfo) -> RejectedResults | None:
        """Remove the results that an account has by the index, if the recheck shows that too many are wrong.

        Return the devices that must be queried now; None: the results are kept. ``may_reject`` is true.
        """
        name = session.name
        remaining = self._work / f"{hashlib.sha256(name.encode()).hexdigest()[:16]}.remaining.parquet"
        limit = parse_percentage(self._settings.max_index_error)
        async with self._merging:
            rejected = await run_in_thread(reject_index_results, self._folder, selection, name, limit, remaining)
        if rejected is not None:
            log.warning(
                "index_rejected",
                account=name,
                at_least=f"{rejected.low:.2%}",
                allowed=self._settings.max_index_error,
            )
        return rejected

    async def finalize(self, selection: SelectionInfo, stop: StopToken) -> tuple[SelectionInfo, dict[str, int]] | None:
        """Finalize a selection that budget, time or precision ended before all selected devices were queried.

        Return the final selection, and the number of results that are carried in addition, by status; None: the run was
        interrupted. An interrupted run remains as it is, for a resume, and so do accounts that were stopped.
        """
        if stop.interrupted:
            return None
        is_sample = selection.strategy == "sample"
        exhausted = stop.reason is not None or self._call_budget.exhausted
        target = self._folder / (SELECTED if is_sample else CARRIED)
        carried: dict[str, int] = {}
        if (exhausted or selection.precision is not None) and target.exists():
            new = target.with_name(f"{target.name}.new")
            ended = [session.name for session in self._accounts if session.stopped is None]
            carried = await run_in_thread(finalize_selection, self._folder, new, ended, sample=is_sample)
            await run_in_thread(_replace_file, new, target)
        exhausted = exhausted or any(each.over_budget for each in selection.accounts)
        achieved = None if self._stopping_rule is None else self._stopping_rule.achieved_precision
        return replace(selection, budget_exhausted=exhausted, achieved_precision=achieved), carried

    def cleanup(self) -> None:
        """Remove the files that only a resume needs."""
        for work in (self._work, self._folder / INDEX_FOLDER):
            shutil.rmtree(work, ignore_errors=True)


def _replace_file(new: Path, target: Path) -> None:
    with translate_os_errors(f"{target}: cannot be written"):
        put_in_place(new, target)
