"""Strategies: each selects the devices of one account that a run queries.

A plain full audit has no strategy, and touches nothing of this package.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from auditor.bulk.index_results import index_results_path
from auditor.client.operations import BATCH_GET_DEVICE_STATE
from auditor.concurrency import StopToken, run_in_thread
from auditor.config.settings import Account, Settings, parse_percentage
from auditor.engine.account_session import AccountSession
from auditor.engine.allocation import quota_fractions
from auditor.fleet.table import count_devices_to_query
from auditor.log import log
from auditor.runs.selection_info import AccountSelection, RequestCounts
from auditor.selection.baseline import Baseline
from auditor.selection.budget import BudgetEstimator
from auditor.selection.change_detection import MAX_CLOCK_DIFFERENCE, IncrementalRule
from auditor.selection.connectivity import fetch_connection_states, write_connections
from auditor.selection.ranking import SampleSpec
from auditor.selection.selection_files import SelectionFiles
from auditor.selection.selector import ChangeSelectionCounts, DeviceSelector
from auditor.stats.intervals import Z
from auditor.text.durations import parse_duration
from auditor.text.formatting import format_utc

EXTRA_FACTOR, EXTRA_DEVICES = 1.25, 200
"""Devices of a sample in addition to those that the precision needs without strata: some will fail, for example."""


@dataclass(frozen=True, slots=True)
class SelectionContext:
    """One account whose devices are selected, the files to write, and a folder for intermediate files."""

    account: Account
    session: AccountSession
    selector: DeviceSelector
    files: SelectionFiles
    work: Path
    stop: StopToken


@dataclass(frozen=True, slots=True)
class SelectionResult:
    """Selected devices of one account: a file in the order of queries, and the number of the others.

    ``account`` is None if the manifest has the selection already. Previous results are ``carried``, by status;
    ``unsampled`` devices are not in the sample.
    """

    queue: Path
    account: AccountSelection | None = None
    carried: Mapping[str, int] = field(default_factory=dict)
    unsampled: int = 0


class SelectionStrategy(Protocol):
    """Selects the devices of one account."""

    async def select(self, context: SelectionContext) -> SelectionResult | None:
        """Select devices and write the files; return None if the run was interrupted first.

        Raises:
            AccountStoppedError: the account is denied access, or was never reached.
            RunNotWritableError: a file cannot be written, or the baseline run cannot be read.
        """


class IncrementalStrategy:
    """Selects the devices that may have changed since the baseline run, and some others at random."""

    def __init__(self, settings: Settings, folder: Path, baseline: Baseline, budget: BudgetEstimator) -> None:
        self._settings, self._folder, self._baseline, self._budget = settings, folder, baseline, budget

    async def select(self, context: SelectionContext) -> SelectionResult | None:
        """See ``SelectionStrategy``. An account that was read by the search index needs no connection states."""
        results = index_results_path(self._folder, context.account.name)
        return await (self._select_differing(context, results) if results.exists() else self._select_connected(context))

    async def _select_differing(self, context: SelectionContext, results: Path) -> SelectionResult:
        account, session = context.account, context.session
        budget = partial(self._budget.estimate, account, session.sent_before() + session.total_sent)
        select = partial(context.selector.select_differing, await self._baseline.read(), results, self._rule(), budget)
        return _changed_result(context, await run_in_thread(select, context.files))

    async def _select_connected(self, context: SelectionContext) -> SelectionResult | None:
        """Select by connection states, or without them if the call budget does not cover them."""
        account, session, selector = context.account, context.session, context.selector
        baseline, rule = await self._baseline.read(), self._rule()
        queries, states = context.work / "state-queries.parquet", context.work / "states.parquet"
        requested = await run_in_thread(selector.write_state_queries, baseline, rule, queries)
        calls_before = session.sent_before()
        calls = requested // BATCH_GET_DEVICE_STATE.page_size
        if not self._budget.covers(account, calls_before + session.total_sent + calls):
            log.warning("call_budget_without_states", account=account.name, devices=requested)
            budget = partial(self._budget.estimate, account, calls_before + session.total_sent)
            over_budget = await run_in_thread(selector.select_without_states, budget, context.files)
            return _changed_result(context, ChangeSelectionCounts(over_budget))
        journal = context.work / "states.jsonl"
        responses = await fetch_connection_states(
            session, queries, journal, states, devices=requested, stop=context.stop
        )
        if context.stop.interrupted:
            return None
        sent_before = max(responses, session.sent_before(BATCH_GET_DEVICE_STATE))
        comparable = abs(session.client.clock_offset) <= MAX_CLOCK_DIFFERENCE
        if not comparable:
            log.warning("clocks_differ", account=account.name)
        budget = partial(self._budget.estimate, account, max(sent_before, calls_before) + session.total_sent)
        select = partial(selector.select_changed, states if comparable else None, rule, budget)
        changed = await run_in_thread(select, context.files)
        offset = changed.learned_offset
        await run_in_thread(write_connections, states, context.files.connections, account.name, offset)
        if offset is not None:
            log.info("time_zone_learned", account=account.name, zone=str(offset), devices=offset.devices)
        return _changed_result(context, changed, states_requested=requested, sent_before=sent_before)

    def _rule(self) -> IncrementalRule:
        settings = self._settings
        age = None if settings.max_age is None else parse_duration(settings.max_age)
        expired = None if age is None else datetime.fromtimestamp(max(0.0, time.time() - age), UTC)
        return IncrementalRule(settings.change_detection, expired, parse_percentage(settings.recheck))


def _changed_result(
    context: SelectionContext, changed: ChangeSelectionCounts, *, states_requested: int = 0, sent_before: int = 0
) -> SelectionResult:
    """Return the result of an incremental selection; earlier sessions sent ``sent_before`` requests for states."""
    stats = context.session.request_stats(BATCH_GET_DEVICE_STATE)
    selection = AccountSelection(
        context.account.name,
        over_budget=changed.over_budget,
        states_requested=states_requested,
        states_unknown=changed.unknown,
        requests=RequestCounts(sent_before + stats.sent, stats.retried, stats.throttled),
        selected_at=format_utc(time.time()),
        unchanged=changed.unchanged,
        learned_offset=changed.learned_offset,
    )
    return SelectionResult(context.files.queue, selection)


class RollingStrategy:
    """Selects as many devices as the budget allows, by priority."""

    def __init__(self, baseline: Baseline, budget: BudgetEstimator) -> None:
        self._baseline, self._budget = baseline, budget

    async def select(self, context: SelectionContext) -> SelectionResult | None:
        """See ``SelectionStrategy``."""
        baseline = await self._baseline.read()
        session = context.session
        budget = partial(self._budget.estimate, context.account, session.sent_before() + session.total_sent)
        over_budget = await run_in_thread(context.selector.select_rolling, baseline, budget, context.files)
        selection = AccountSelection(context.account.name, over_budget=over_budget, selected_at=format_utc(time.time()))
        return SelectionResult(context.files.queue, selection)


class IndexStrategy:
    """Selects a random part of the devices that the platform's search index has, and all that it does not have."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        self._settings, self._folder = settings, folder

    async def select(self, context: SelectionContext) -> SelectionResult | None:
        """See ``SelectionStrategy``."""
        results = index_results_path(self._folder, context.account.name)
        fraction = parse_percentage(self._settings.recheck)
        select = partial(context.selector.select_recheck, results if results.exists() else None, fraction)
        selected = await run_in_thread(select, context.files)
        selection = AccountSelection(
            context.account.name, selected_at=format_utc(time.time()), unchanged=selected.unchanged
        )
        return SelectionResult(context.files.queue, selection)


class SampleStrategy:
    """Selects a random sample of ``fleet``; that is None if the platform lists a part of it during the run."""

    def __init__(self, settings: Settings, fleet: Path | None) -> None:
        self._settings, self._fleet = settings, fleet

    async def select(self, context: SelectionContext) -> SelectionResult | None:
        """See ``SelectionStrategy``."""
        sample = await run_in_thread(self._sample, context.account.name)
        unsampled = await run_in_thread(context.selector.select_sample, context.files, sample)
        selection = AccountSelection(context.account.name, selected_at=format_utc(time.time()))
        return SelectionResult(context.files.queue, selection, unsampled=unsampled)

    def _sample(self, account: str) -> SampleSpec:
        settings = self._settings
        if settings.precision is None:
            size = 0 if settings.sample_size is None else settings.sample_size
            return SampleSpec(max(1, round(size * self._sample_fraction(account))))
        if settings.precision_of == "fleet":  # every device counts, so the largest number that can be needed is known
            needed = (Z / 2 / parse_percentage(settings.precision)) ** 2
            return SampleSpec(math.ceil(EXTRA_FACTOR * needed) + EXTRA_DEVICES)
        return SampleSpec(None, equal_per_product=settings.precision_of == "product")

    def _sample_fraction(self, account: str) -> float:
        """Return the fraction of the sample that an account has: by devices, or by quota if the fleet is incomplete."""
        names = [each.name for each in self._settings.account]
        if self._fleet is None:
            return quota_fractions(self._settings)[names.index(account)]
        devices = count_devices_to_query(self._fleet, names)
        return devices.get(account, 0) / max(1, sum(devices.values()))
