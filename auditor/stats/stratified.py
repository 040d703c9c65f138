"""Share of every version in a fleet, with its 95% interval, from the counts of a stratified random sample.

Strata are the products of the fleet. The devices of an account that are named only by iot_id form one stratum. Devices
that the platform reports as never activated need no query; they are certain.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from auditor.models import Level
from auditor.stats.intervals import Interval, Stratum
from auditor.stats.ratio_estimator import combined_share_interval, combined_unseen_share_limit

MIN_SAMPLED_FOR_OMISSION = 2
"""A stratum with fewer sampled devices must not be omitted, even if none of them reports the module."""

RARE_MODULE_FRACTION = 0.01
"""Modules that a smaller fraction of the sampled devices reports do not count for the precision of a sample."""

StratumKey = tuple[str, str | None]
"""Account and product key: of a stratum, or of the product that a device reported."""

ModuleKey = tuple[str | None, str | None, str]
"""Account, product key and lower-case name of a module: a ``VersionKey`` without the version."""


class VersionKey(NamedTuple):
    """A version of a module in an account and a product. None: in all accounts, or in all products."""

    account: str | None
    product_key: str | None
    module_name: str
    module_version: str

    @property
    def module(self) -> ModuleKey:
        """Key of its module; names that differ only in letter case are the same module."""
        return self.account, self.product_key, self.module_name.lower()


@dataclass(frozen=True, slots=True)
class ShareEstimate:
    """A version's share, estimated from a sample, with its 95% interval.

    ``on_version`` counts the sampled devices that run it, ``with_module`` those that report its module (all of them at
    the level ``fleet``). ``module_key`` is the module's name in lower case, as in the database.
    """

    version: VersionKey
    on_version: int
    with_module: int
    interval: Interval
    module_key: str


class StratifiedCounts:
    """Counts of a stratified sample: devices of each stratum, and those of them that were sampled and answered.

    ``certain`` counts devices that certainly report no module.
    """

    def __init__(self) -> None:
        self.devices: Counter[StratumKey] = Counter()
        self.sampled: Counter[StratumKey] = Counter()
        self.certain = 0
        self._with_module: Counter[tuple[StratumKey, StratumKey, str]] = Counter()
        self._on_version: Counter[tuple[StratumKey, StratumKey, str, str]] = Counter()
        self._module_names: dict[str, str] = {}

    @property
    def version_count(self) -> int:
        """Number of different versions of modules in the sample, over all products."""
        return len({(module, version) for _, _, module, version in self._on_version})

    def add(
        self,
        stratum: StratumKey,
        product: StratumKey,
        module_name: str,
        module_version: str,
        devices: int = 1,
        *,
        module_key: str | None = None,
    ) -> None:
        """Count devices of a stratum (where the fleet lists them) that reported a product, and run a version.

        ``module_key`` is the module's name in lower case, if the database made it.
        """
        module = module_name.lower() if module_key is None else module_key
        # As in the inventory: of names that differ only in letter case the one that sorts last is shown.
        self._module_names[module] = max(self._module_names.get(module, ""), module_name)
        self._with_module[stratum, product, module] += devices
        self._on_version[stratum, product, module, module_version] += devices

    def shares(self, level: Level, limit: int | None = None, *, frequent: bool = False) -> Iterator[ShareEstimate]:
        """Yield the share of each version; with ``limit`` of the most uncertain ones, the widest interval included.

        ``frequent`` prefers the most frequent versions instead, in this order, which is the same at every level.
        """
        on_version: dict[tuple[ModuleKey, str], Counter[StratumKey]] = {}
        for (stratum, product, name, version), devices in self._on_version.items():
            on_version.setdefault((_module(level, product, name), version), Counter())[stratum] += devices
        with_module = self._by_module(level)
        all_devices = self.sampled.total() + self.certain
        totals = {module: all_devices if level == "fleet" else counts.total() for module, counts in with_module.items()}
        found = list(on_version.items())
        if frequent:
            found.sort(key=lambda each: (-each[1].total(), each[0][0][2], each[0][1]))
        elif limit is not None:
            found.sort(key=lambda each: abs(0.5 - each[1].total() / totals[each[0][0]]))
        for (module, version), counts in found[:limit]:
            strata = list(self._strata(level, with_module[module], counts))
            if not any(each.with_module for each in strata):
                continue  # only devices outside of the fleet report it, which a file from elsewhere may contain
            account, product_key, name = module
            shown = VersionKey(account, product_key, self._module_names[name], version)
            yield ShareEstimate(shown, counts.total(), totals[module], combined_share_interval(strata), name)

    def unseen_fleet_share(self) -> float | None:
        """Return the largest likely share, in the fleet, of a version that no sampled device runs; None: no sample."""
        strata = list(self._strata("fleet", Counter(), Counter()))
        return combined_unseen_share_limit(strata) if any(each.answered for each in strata) else None

    def widest_half_width(self, level: Level, limit: int | None = None) -> float | None:
        """Return half the width of the widest interval, without rare modules; None if no version was seen."""
        widths = (each.interval.half_width for each in self.shares(level, limit) if not self.is_rare(each))
        return max(widths, default=None)

    def is_rare(self, share: ShareEstimate) -> bool:
        """Return whether so few sampled devices report the module that its shares cannot be precise."""
        version = share.version
        if version.account is None:
            return share.with_module < RARE_MODULE_FRACTION * sum(self.sampled.values())
        product = (version.account, version.product_key)
        stratum = product if product in self.devices else (version.account, None)
        return share.with_module < RARE_MODULE_FRACTION * self.sampled[stratum]

    def unseen_shares(self, level: Level, modules: Iterable[ModuleKey]) -> dict[ModuleKey, Interval]:
        """Return, by module, the share of a version that no sampled device runs.

        Modules that no sampled device reports are omitted. At the level ``fleet`` the share is one of all devices, and
        so the same for every module.
        """
        if level == "fleet":
            strata = list(self._strata(level, Counter(), Counter()))
            is_sampled = any(each.answered for each in strata)
            return dict.fromkeys(modules, combined_share_interval(strata)) if is_sampled else {}
        with_module = self._by_module(level)
        return {
            module: combined_share_interval(list(self._strata(level, with_module[module], Counter())))
            for module in modules
            if module in with_module
        }

    def _by_module(self, level: Level) -> dict[ModuleKey, Counter[StratumKey]]:
        """Return, by module, the sampled devices of each stratum that report it."""
        found: dict[ModuleKey, Counter[StratumKey]] = {}
        for (stratum, product, name), devices in self._with_module.items():
            found.setdefault(_module(level, product, name), Counter())[stratum] += devices
        return found

    def _strata(
        self, level: Level, with_module: Counter[StratumKey], on_version: Counter[StratumKey]
    ) -> Iterator[Stratum]:
        for stratum in with_module if level == "product" else self.devices:
            sampled = self.sampled[stratum]
            # A device that reports a module in two spellings is counted twice in with_module.
            seen = sampled if level == "fleet" else min(sampled, with_module[stratum])
            if level == "fleet" or seen or (level == "module" and sampled < MIN_SAMPLED_FOR_OMISSION):
                yield Stratum(self.devices[stratum], sampled, seen, min(seen, on_version[stratum]))
        if level == "fleet" and self.certain:
            yield Stratum(self.certain, self.certain, self.certain, 0)


def _module(level: Level, product: StratumKey, name: str) -> ModuleKey:
    account, product_key = product if level == "product" else (None, None)
    return account, product_key, name
