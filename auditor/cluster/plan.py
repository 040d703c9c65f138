"""``plan.json``: how a run is cut into shards, and what the settings of a worker are compared with. Pure.

It is put last by ``auditor cut``: without it nothing has started, and with it nothing is cut again. It contains no key,
no command and no proxy: workers take these from their own settings. It has digests of all settings that change what a
run is, so that a difference is refused by the name of its key.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

import msgspec
import orjson

from auditor.config.serialization import RATE_KEYS, settings_to_dict
from auditor.config.settings import Account, Settings, SharedQuotaSettings
from auditor.errors import SettingsError, UsageError
from auditor.models import ReadModules
from auditor.runs.manifest import AccountInfo, FleetInfo
from auditor.runs.selection_info import SelectionInfo
from auditor.storage.json_types import Count, MaxFailed, PositiveCount, Sha256, Timestamp

FLEET_OBJECT, BASELINE_OBJECT = "fleet.parquet", "baseline.parquet"

CALLS_PER_LANE = 5_000.0
"""Calls a second from which an account is cut into another lane: one process does a multiple of that."""

PLAN_VERSION = 1

_EVERYTHING = "settings"
"""Name under which the digests of keys outside of accounts are stored."""


ShardName = Annotated[str, msgspec.Meta(pattern=r"^\d{4,6}-[a-z0-9]([a-z0-9-]{0,39})$")]

RunName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
"""Names that become those of folders: a plan that has another one is refused, for a storage is untrusted input."""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a run that one process queries: an account, or one of its lanes.

    Attributes:
        name: its folder in ``shards``.
        account: name of the account.
        lane: which of the lanes of its account it is, from 0.
        lanes: number of these lanes.
        site: name of the site whose workers query it; null: any.
        devices: its devices; null: the platform lists them.
        bytes: size of its fleet file.
        sha256: digest of its fleet file; null: it has none.
        baseline_sha256: digest of its previous results; null: it has none.
    """

    name: ShardName
    account: str
    lane: Count = 0
    lanes: PositiveCount = 1
    site: str | None = None
    devices: Count | None = None
    bytes: Count = 0
    sha256: Sha256 | None = None
    baseline_sha256: Sha256 | None = None

    @property
    def folder(self) -> str:
        """Folder of the shard in the storage."""
        return f"shards/{self.name}"

    @property
    def label(self) -> str:
        """Name of the shard for people."""
        return self.account if self.lanes == 1 else f"{self.account} {self.lane + 1}/{self.lanes}"


class ShardPlan(msgspec.Struct, frozen=True, kw_only=True):
    """How a run is cut.

    Attributes:
        auditor_version: version of auditor that all processes of the run must have.
        name: name of the run, from the settings.
        started_at: when the run was cut.
        accounts: accounts of the run, in the settings' order.
        fleet: devices of its fleet files.
        max_failed: devices that may fail or stay pending.
        checkpoint: seconds between two checkpoints.
        shards: the shards; their index is their place.
        digests: digests of settings, by account or ``settings``, and by key.
        modules: the only modules that the run reads of its devices; null: all.
        selection: how devices are selected; null: all are queried.
        plan_version: version of this contract.
    """

    auditor_version: str
    name: RunName
    started_at: Timestamp
    accounts: tuple[AccountInfo, ...]
    fleet: FleetInfo
    max_failed: MaxFailed
    checkpoint: Annotated[float, msgspec.Meta(ge=0.1, le=600)]
    shards: tuple[Shard, ...]
    digests: dict[str, dict[str, str]]
    modules: ReadModules | None = None
    selection: SelectionInfo | None = None
    plan_version: int = PLAN_VERSION

    def shards_of(self, site: str | None) -> list[Shard]:
        """Return the shards of a site; without one, all. Raise UsageError if the site has none."""
        shards = [shard for shard in self.shards if site is None or shard.site == site]
        if not shards:
            sites = ", ".join(sorted({shard.site for shard in self.shards if shard.site is not None})) or "none"
            raise UsageError(f'site "{site}": has no shard of this run; its sites: {sites}')
        return shards


def refuse_strategies(settings: Settings) -> None:
    """Raise SettingsError for the first setting that a run of shards cannot follow, with the reason."""
    budget = "it divides one budget, by previous results of all accounts, which a shard does not have"
    sample = "a sample is drawn and evaluated over the whole fleet, and a shard has a part of it"
    reasons = {
        "max_calls": budget,
        "sample_size": sample,
        "precision": sample,
        "released": "its tables belong to the whole run, and shards store results of devices only",
    }
    for key, reason in reasons.items():
        if getattr(settings, key):
            raise SettingsError(f"{key}: is not for a run of shards: {reason}; use auditor run, or leave it out")
    if settings.since not in {None, "last", "none"}:
        reason = "its machines take previous results from the storage, not from a path"
        raise SettingsError(f'since: is not for a run of shards: {reason}; use auditor run, or since = "last"')
    for account in settings.account:
        if account.read != "device":
            reason = "results of the search index are evaluated over the whole run"
            advice = 'use auditor run, or read = "device"'
            raise SettingsError(f'account "{account.name}": read: is not for a run of shards: {reason}; {advice}')


def cut_into_shards(settings: Settings, devices: Mapping[str, int]) -> tuple[Shard, ...]:
    """Return the shards of all accounts. ``devices`` counts those of each account with a fleet file."""
    shards: list[Shard] = []
    for account in settings.account:
        counted = None if account.uses_discovery else devices.get(account.name, 0)
        lanes = count_lanes(account, counted)
        for lane in range(lanes):
            name = f"{len(shards):04d}-{_slug(account.name)}"
            own = None if counted is None else len(range(lane, counted, lanes))
            shards.append(
                Shard(name=name, account=account.name, lane=lane, lanes=lanes, site=account.site, devices=own)
            )
    return tuple(shards)


def count_lanes(account: Account, devices: int | None) -> int:
    """Return into how many lanes an account is cut; no lane is without devices."""
    if devices is None:
        return 1
    by_quota = 1 if account.rate is None else math.ceil(account.rate / CALLS_PER_LANE)
    return max(1, min(account.lanes or by_quota, devices))


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "account"


def digest_settings(settings: Settings) -> dict[str, dict[str, str]]:
    """Return a digest of each setting that changes what a run is: by account or ``settings``, and by key."""
    table = settings_to_dict(settings)
    accounts = {each["name"]: each for each in table.pop("account")}
    for account in accounts.values():
        if "file" in account.get("fleet", {}):
            account["fleet"] = "file"  # its devices are in the storage, wherever the file is
    return {name: _digests(each) for name, each in {_EVERYTHING: table, **accounts}.items()}


def _digests(table: Mapping[str, Any]) -> dict[str, str]:
    encoded = {key: orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for key, value in table.items()}
    return {key: hashlib.sha256(each).hexdigest()[:16] for key, each in encoded.items() if key not in RATE_KEYS}


def describe_differences(plan: ShardPlan, shard: Shard, settings: Settings, version: str) -> list[str]:
    """Return how a worker's settings, or its auditor, differ from those with which the run was cut; a clause each."""
    if plan.auditor_version != version:
        return [f"this auditor is {version}, and the run was cut by {plan.auditor_version}"]
    own = digest_settings(settings)
    if shard.account not in own:
        return [f'they have no account "{shard.account}"']
    found = list(_differing(plan.digests.get(_EVERYTHING, {}), own[_EVERYTHING]))
    account = f'account "{shard.account}": '
    return found + [account + each for each in _differing(plan.digests.get(shard.account, {}), own[shard.account])]


def _differing(before: Mapping[str, str], own: Mapping[str, str]) -> Iterable[str]:
    return (f"{key} differs" for key in dict.fromkeys((*before, *own)) if before.get(key) != own.get(key))


def worker_settings(settings: Settings, shard: Shard) -> Settings:
    """Return the settings of a worker for one shard: its account, with the lane's part of the quota.

    Lanes that share a quota through Redis keep the whole quota: Redis divides it.
    """
    account = next(each for each in settings.account if each.name == shard.account)
    sharing = settings.quota_sharing
    if shard.lanes > 1 and not (isinstance(sharing, SharedQuotaSettings) and sharing.redis is not None):
        account, sharing = _divide_quota(account, shard.lanes), "none"
    return msgspec.structs.replace(settings, account=(account,), quota_sharing=sharing)


def _divide_quota(account: Account, lanes: int) -> Account:
    quota = account.calls_per_second
    divided = quota if isinstance(quota, str) else quota / lanes
    given = msgspec.structs.asdict(account.quotas)
    quotas = {key: None if each is None else each / lanes for key, each in given.items()}
    return msgspec.structs.replace(
        account, calls_per_second=divided, quotas=msgspec.structs.replace(account.quotas, **quotas)
    )
