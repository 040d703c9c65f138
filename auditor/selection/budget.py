"""How many devices of an account a run can query within its call budget and its time."""

import math

from auditor.concurrency import TimeLimit
from auditor.config.settings import Account, Settings, parse_percentage
from auditor.engine.allocation import calls_per_account
from auditor.log import log
from auditor.planning.capacity import max_calls_within
from auditor.planning.measurements import RunMeasurements
from auditor.selection.ranking import SelectionBudget


class BudgetEstimator:
    """Estimates the budget of each account from an earlier run."""

    def __init__(self, settings: Settings, measurements: RunMeasurements | None, time_limit: TimeLimit) -> None:
        self._settings, self._measurements, self._time_limit = settings, measurements, time_limit
        names = [account.name for account in settings.account]
        self._calls = dict(zip(names, calls_per_account(settings), strict=True)) if settings.max_calls else {}

    def covers(self, account: Account, calls: int) -> bool:
        """Return whether the call budget of an account covers a number of calls, and some more."""
        allotted = self._calls.get(account.name)
        return allotted is None or calls < allotted

    def estimate(self, account: Account, sent: int) -> SelectionBudget | None:
        """Return the budget of an account after a number of sent calls; None: there is no limit."""
        calls = timed = limit = None
        if self._settings.max_calls is not None:
            calls = limit = max(0, self._calls[account.name] - sent)
        if self._time_limit.is_set:
            seconds = max(0.0, self._time_limit.remaining())
            timed = max_calls_within(self._settings, account, self._measurements, seconds)
            if account.rate is not None:  # the quota allows no more calls, so no more devices can be queried
                limit = math.ceil(min(seconds * account.rate, math.inf if limit is None else limit))
        if calls is None and not self._time_limit.is_set:
            return None
        if calls == 0:
            log.warning("call_budget_exhausted", account=account.name, calls=sent)
        available = [each for each in (calls, timed) if each is not None]
        queried = None if self._measurements is None else self._measurements.queried.get(account.name)
        per_device = 1.0 if queried is None else queried.requests / queried.devices
        devices = math.floor(min(available) / per_device) if available else None
        return SelectionBudget(devices, parse_percentage(self._settings.fair_share), limit)
