"""Stopping rule of a sample: queries end as soon as the shares have the required precision."""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

from auditor.concurrency import run_in_thread
from auditor.config.settings import Settings
from auditor.fleet.table import devices_by_stratum
from auditor.models import Device, DeviceResult, Level, Outcome
from auditor.planning.sample_size import CHECK_FACTOR, MIN_SAMPLED, PRODUCT_CHECK_FACTOR
from auditor.runs.folder import FLEET
from auditor.runs.selection_info import SelectionInfo
from auditor.runs.views import define_base_views
from auditor.stats.intervals import unseen_share_limit
from auditor.stats.stratified import StratifiedCounts, StratumKey
from auditor.storage.database import READING_MEMORY, READING_THREADS, scratch_database

FIRST_CHECKED = 8
"""Versions that are checked first, those with the most uncertain shares. All are checked only if these are precise."""

Fetch = Callable[[Device], Awaitable[Outcome]]


class StoppingRule:
    """Counts the results of a sample, and decides when they are precise enough.

    ``resumed``: earlier processes have queried devices. Once ``satisfied`` no more devices are queried.
    """

    def __init__(self, settings: Settings, folder: Path, selection: SelectionInfo, *, resumed: bool) -> None:
        self._precision = selection.precision or 0.0
        self._level: Level = selection.precision_of or "fleet"
        self._skipping = {account.name for account in settings.account if account.skips_never_activated}
        self._folder, self._resumed, self._account_count = folder, resumed, len(settings.account)
        self._counts = StratifiedCounts()
        self._started: set[str] = set()
        self._satisfied_products: set[StratumKey] = set()
        self._next_check = MIN_SAMPLED
        self.satisfied = False

    @property
    def achieved_precision(self) -> float | None:
        """Half the width of the widest interval; None if there are no results."""
        return self._counts.widest_half_width(self._level)

    async def add_account(self, account: str) -> None:
        """Add an account whose devices are in the fleet now; raise RunNotWritableError if that cannot be read."""
        if self._resumed and not self._started:
            self._counts = await run_in_thread(count_sample, self._folder)
        self._started.add(account)
        self._counts.devices.clear()
        self._counts.certain = 0
        for stratum, (devices, certain) in devices_by_stratum(self._folder / FLEET, self._skipping).items():
            if devices:
                self._counts.devices[stratum] = devices
            self._counts.certain += certain

    def take_until_satisfied(self, devices: Iterator[Device]) -> Iterator[Device]:
        """Yield devices until all shares are precise enough, without those of products whose shares already are."""
        for device in devices:
            if self.satisfied:
                return
            if (device.account, device.product_key) not in self._satisfied_products:
                yield device

    def counting(self, fetch: Fetch) -> Fetch:
        """Return ``fetch``, with its results counted."""

        async def fetch_and_count(device: Device) -> Outcome:
            outcome = await fetch(device)
            if isinstance(outcome, DeviceResult):
                self._count(device, outcome)
            return outcome

        return fetch_and_count

    def _count(self, queried: Device, result: DeviceResult) -> None:
        stratum, product = (queried.account, queried.product_key), (queried.account, result.device.product_key)
        self._counts.sampled[stratum] += 1
        for module in result.modules:
            self._counts.add(stratum, product, module.module_name, module.module_version)
        sampled = sum(self._counts.sampled.values())
        if not self.satisfied and sampled >= self._next_check:
            factor = PRODUCT_CHECK_FACTOR if self._level == "product" else CHECK_FACTOR
            self._next_check = int(sampled * factor) + 1
            if self._level == "product":
                self._check_products()
            elif self._is_every_account_sampled():
                self._check()

    def _is_every_account_sampled(self) -> bool:
        """Return whether every account has enough results: without one, a part of the fleet would be unknown."""
        sampled, present = Counter[str](), Counter[str]()
        for (account, _), devices in self._counts.devices.items():
            present[account] += devices
        for (account, _), devices in self._counts.sampled.items():
            sampled[account] += devices
        enough = (sampled[account] >= min(MIN_SAMPLED, devices) for account, devices in present.items())
        return len(self._started) == self._account_count and all(enough)

    def _check(self) -> None:
        # In most checks one of the first few is too wide already.
        widest = (self._counts.widest_half_width(self._level, limit) for limit in (FIRST_CHECKED, None))
        self.satisfied = all(each is not None and each <= self._precision for each in widest)

    def _check_products(self) -> None:
        """Check each product alone: devices of precise products are not queried, so that the others finish sooner."""
        counts, half_widths = self._counts, dict[StratumKey, float]()
        for stratum, devices in counts.devices.items():
            sampled = counts.sampled[stratum]
            # Without a sampled module, the number of devices that can report one is limited.
            half_widths[stratum] = unseen_share_limit(devices, sampled) / 2 if sampled else 1.0
        of_versions = dict[StratumKey, float]()
        for share in counts.shares("product"):
            if counts.is_rare(share):
                continue
            product = (str(share.version.account), share.version.product_key)
            stratum = product if product in half_widths else (product[0], None)
            of_versions[stratum] = max(of_versions.get(stratum, 0.0), share.interval.half_width)
        half_widths |= of_versions
        self._satisfied_products = {
            stratum
            for stratum, half_width in half_widths.items()
            if half_width <= self._precision and counts.sampled[stratum] >= min(MIN_SAMPLED, counts.devices[stratum])
        }
        all_satisfied = len(self._satisfied_products) == len(half_widths)
        self.satisfied = all_satisfied and len(self._started) == self._account_count


_SAMPLED_RESULTS = """
  CREATE TABLE sampled_results AS
  WITH sampled AS NOT MATERIALIZED (
    SELECT account, product_key, device_name, iot_id FROM selected_devices WHERE selection_reason = 'sample'
  )
  SELECT s.account, s.product_key AS stratum, l.product_key, l.modules
  FROM sampled s JOIN lines l ON s.account = l.account AND s.iot_id = l.iot_id
  UNION ALL
  SELECT s.account, s.product_key AS stratum, l.product_key, l.modules
  FROM sampled s JOIN lines l
    ON s.account = l.account AND s.iot_id IS NULL AND s.product_key = l.product_key AND s.device_name = l.device_name"""


def count_sample(folder: Path) -> StratifiedCounts:
    """Return the counts of a sample, from the devices selected and the results so far; the strata have no sizes yet."""
    counts = StratifiedCounts()
    with scratch_database(
        memory=READING_MEMORY, threads=READING_THREADS, failure=f"{folder}: cannot be read"
    ) as database:
        define_base_views(database, folder)
        database.execute(_SAMPLED_RESULTS)
        devices_by_key = "SELECT account, stratum, count(*) FROM sampled_results GROUP BY ALL"
        for account, key, devices in database.execute(devices_by_key).fetchall():
            counts.sampled[account, key] = devices
        devices_by_version = """
          SELECT account, stratum, product_key, module.module_name, module.module_version, count(*)
          FROM (SELECT *, unnest(modules) AS module FROM sampled_results) GROUP BY ALL"""
        for account, stratum, key, name, version, devices in database.execute(devices_by_version).fetchall():
            counts.add((account, stratum), (account, key), name, version, devices)
    return counts
