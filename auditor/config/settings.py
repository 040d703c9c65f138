"""The settings' tables, as values. Reading them from TOML, and their rules, are ``config``'s."""

import difflib
from collections.abc import Collection
from fractions import Fraction
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from auditor.errors import UsageError
from auditor.models import DeviceStatus, Dialect, Level, Secret, SinceRule


class Table(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the settings file; an unknown key is refused."""


class SecretSource(Table, frozen=True):
    """Where a key lies: ``{ env = "NAME" }``, ``{ file = "/run/secrets/eu" }``, or what a command prints:
    ``{ command = ["pass", "show", "iot/eu"] }``.
    """

    env: str | None = None
    file: str | None = None
    command: tuple[str, ...] | None = None


class Patterns(Table, frozen=True, omit_defaults=True):
    """Which devices of a platform: patterns such as ``lamp_*`` on product keys and device names, in their letter case,
    and statuses, in which ``UNACTIVE`` is a device that was never activated. A list that is empty asks nothing.
    """

    product_key: tuple[str, ...] = ()
    device_name: tuple[str, ...] = ()
    status: tuple[DeviceStatus, ...] = ()


class FleetSource(Table, frozen=True, omit_defaults=True):
    """Which devices: those in a file, or those that the platform lists; one of the two.

    Attributes:
        file: a fleet file; ``-`` is standard input.
        products: ``"all"``, or product keys: every device of these products.
        include: of those that are listed, the ones that fit every list of these patterns.
        exclude: of these, not the ones that fit any of its lists.
        ask_never_activated: spend a call on a device that was never activated, which can have reported nothing.
    """

    file: str | None = None
    products: Literal["all"] | tuple[str, ...] | None = None
    include: Patterns = Patterns()
    exclude: Patterns = Patterns()
    ask_never_activated: bool = False

    @property
    def picks(self) -> bool:
        """Whether some devices of a product that is listed are not wanted."""
        both = (self.include, self.exclude)
        return any(patterns.device_name or patterns.status for patterns in both)


class Quotas(
    Table,
    frozen=True,
    omit_defaults=True,
    rename={
        "query_product_list": "QueryProductList",
        "query_device": "QueryDevice",
        "query_device_deep": "QueryDeviceDeep",
        "list_ota_module_by_product": "ListOTAModuleByProduct",
        "batch_get_device_state": "BatchGetDeviceState",
    },
):
    """Calls a second that an account has for operations beside the main one; None: what Alibaba documents.

    Attributes:
        query_product_list: ``QueryProductList``, 50.
        query_device: ``QueryDevice``, 50.
        query_device_deep: the same past the first 100,000 devices of a product, 2.
        list_ota_module_by_product: ``ListOTAModuleByProduct``, 10.
        batch_get_device_state: ``BatchGetDeviceState``, 50.
    """

    query_product_list: float | None = None
    query_device: float | None = None
    query_device_deep: float | None = None
    list_ota_module_by_product: float | None = None
    batch_get_device_state: float | None = None


class SharedBudget(Table, frozen=True):
    """Where auditors share what an account may send: ``{ directory = "/run/auditor" }``, which all of them can write
    to, or ``{ redis = "redis://HOST:6379/0", password = { env = "NAME" } }``.
    """

    directory: str | None = None
    redis: str | None = None
    password: SecretSource | None = None


Budget = SharedBudget | Literal["machine", "alone"]
"""With whom quotas are shared."""


class PolicySettings(Table, frozen=True):
    """What is judged after each run: the rules in ``file``."""

    file: str


class ReportSettings(Table, frozen=True):
    """What is written after each run.

    Attributes:
        html: the report; True: ``report.html`` in the run folder; a path: that file, replaced each time.
        excel: the inventory as an Excel file; True: ``inventory.xlsx`` in the run folder; a path, likewise.
        metrics: a file of Prometheus text, for node_exporter's textfile collector.
    """

    html: bool | str = False
    excel: bool | str = False
    metrics: str | None = None


class NotifySettings(Table, frozen=True):
    """Who is told of each run.

    Attributes:
        webhook: where the summary is posted; an address may be a secret, so one that is written out is never kept.
        secret: signs what is posted.
        when: always, or if there is trouble: an exit code other than 0, a violated rule, or numbers to be doubted.
    """

    webhook: str | SecretSource | None = None
    secret: SecretSource | None = None
    when: Literal["always", "trouble"] = "always"

    def __repr__(self) -> str:
        shown = ", ".join(f"{key}={value!r}" for key, value in self.__rich_repr__())
        return f"NotifySettings({shown})"

    def __rich_repr__(self) -> list[tuple[str, object]]:
        """What is shown of it: where the address lies, and not the address."""
        webhook = Secret(self.webhook) if isinstance(self.webhook, str) else self.webhook
        return [("webhook", webhook), ("secret", self.secret), ("when", self.when)]


class Account(Table, frozen=True):
    """One account of a platform: where it is asked, with which key, how fast, and about which devices.

    Attributes:
        name: told in every file and message.
        endpoint: ``https://HOST:PORT/``.
        dialect: ``tuya`` or ``alibaba``.
        region_id, instance_id: Alibaba's.
        access_key_id, access_key_secret: where they lie; a secret written out is refused.
        per_second: the account's quota for the operation in calls a second; ``"unlimited"`` on a platform of your own;
            ``"auto"`` looks for it, beginning at 10.
        share: the part of the quota that is ours, above 0 and up to 1.
        ca_file: a PEM file with the authorities to trust instead of the system's.
        proxy: what the platform is reached through: ``http://HOST:PORT``; where that lies, if it holds a password; or
            ``"environment"``: what HTTPS_PROXY, HTTP_PROXY and NO_PROXY say. None ignores these.
        fleet: which devices.
        quotas: of the operations that list the fleet.
        expected_modules: whether it is asked which modules each product defines; None: if the platform lists the fleet.
    """

    name: str
    endpoint: str
    access_key_id: str | SecretSource
    access_key_secret: SecretSource
    dialect: Dialect = "tuya"
    region_id: str | None = None
    instance_id: str | None = None
    per_second: float | Literal["unlimited", "auto"] = 10.0
    share: float = 1.0
    ca_file: str | None = None
    proxy: str | SecretSource | None = None
    fleet: FleetSource | None = None
    quotas: Quotas = Quotas()
    expected_modules: bool | None = None

    @property
    def listed(self) -> bool:
        """Whether its fleet is what the platform lists."""
        return self.fleet is not None and self.fleet.products is not None

    @property
    def skips(self) -> bool:
        """Whether no call is spent on a device of which the platform's list says that it was never activated."""
        return self.listed and self.fleet is not None and not self.fleet.ask_never_activated

    @property
    def rate(self) -> float | None:
        """Calls a second that are ours; None without a limit, or with one that is not known."""
        return None if isinstance(self.per_second, str) else self.per_second * self.share

    @property
    def asked_at(self) -> tuple[str | None, int]:
        """Host and port of the endpoint: with the key they say whose quota a request counts on."""
        parts = urlsplit(self.endpoint)
        return parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)


class WhichDevices(Table, frozen=True):
    """Which devices of a fleet are asked, where that is not all of them; see ``auditor.fleet.choosing``.

    Attributes:
        since: an earlier run whose answers are carried where nothing can have changed: ``"last"``, or a run folder;
            ``"none"``: no answer is carried, though there is a budget.
        since_rule: when something can have changed: ``strict``, if a device is online or has been since it was read;
            ``reconnected``, if it came online since.
        max_age: how old a carried answer may be, such as ``"30d"``; None: as old as it is.
        recheck: the part of the carried that is asked all the same, at random.
        calls: a budget: so many calls at most, of all accounts together, by their quotas.
        guaranteed: the part of a budget that each product has by its size, for those of its devices that were not read
            for the longest time; the rest goes where it is worth most.
        sample: ask so many devices, at random.
        precision: ask as many devices, at random, as it takes to know shares so well, such as ``"1%"``.
        precision_of: of which shares that holds: of the fleet's devices, of those that report a module, or of those of
            a product that report it.
        seed: of everything that is drawn at random; None: another one each time, which the run tells.
    """

    since: str | None = None
    since_rule: SinceRule = "strict"
    max_age: str | None = None
    recheck: str = "1%"
    calls: int | None = None
    guaranteed: str = "90%"
    sample: int | None = None
    precision: str | None = None
    precision_of: Level = "fleet"
    seed: int | None = None

    @property
    def samples(self) -> bool:
        """Whether a random sample is asked."""
        return self.sample is not None or self.precision is not None


def part_of(text: str) -> float:
    """The part, 0 to 1, that a text such as ``"0.1%"`` means."""
    return float(Fraction(text.removesuffix("%")) / 100)


class Settings(WhichDevices, frozen=True, kw_only=True):
    """Everything an audit needs to know but its devices.

    Attributes:
        name: a part of the run folder's name.
        directory: where run folders are made.
        at_once: requests in flight at most, all accounts together; each has its part, by its quota.
        page_size: modules asked for in one request, 1 to 200.
        attempts: requests for one page at most; refusals for the quota do not count.
        timeout, connect_timeout: seconds for a whole request, and for connecting.
        give_up_after: seconds without any usable answer until an account that never gave one is given up.
        max_failed: devices that may fail or stay pending, as a number or as a part such as ``"0.1%"``.
        fsync_every: seconds between syncs of what was answered to disk, which is what a power cut can take; 0: an
            answer counts only once it is on disk.
        retry_budget: the part of an account's quota that repeats may take; beyond it they wait.
        budget: with whom an account's quota is shared: ``"machine"``, all auditors of this user on this machine;
            ``"alone"``, nobody; or a place that others reach as well.
        account: the accounts, audited side by side.
        policy, report, notify: what follows a run; see ``follow_run``.
    """

    account: tuple[Account, ...]
    name: str = "audit"
    directory: str = "audits"
    at_once: int = 64
    page_size: int = 200
    attempts: int = 8
    timeout: float = 30.0
    connect_timeout: float = 10.0
    give_up_after: float = 60.0
    max_failed: int | str = 0
    fsync_every: float = 1.0
    retry_budget: float = 0.1
    budget: Budget = "machine"
    policy: PolicySettings | None = None
    report: ReportSettings = ReportSettings()
    notify: NotifySettings | None = None

    def only(self, names: Collection[str]) -> "Settings":
        """The settings with these accounts alone, in their own order.

        Raises:
            UsageError: there is no account of such a name, or no name; it says which ones there are.
        """
        known = [account.name for account in self.account]
        there = ", ".join(f'"{each}"' for each in known)
        if not names:
            raise UsageError(f"no account was picked: the settings have {there}")
        for name in names:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                meant = f'; did you mean "{near[0]}"?' if near else "; give one of these"
                raise UsageError(f'account "{name}": is not in the settings, which have {there}{meant}')
        return msgspec.structs.replace(self, account=tuple(each for each in self.account if each.name in names))

    def failures_allowed(self, devices: int) -> int:
        """``max_failed`` as a number of devices in a fleet of ``devices``."""
        if isinstance(self.max_failed, int):
            return self.max_failed
        return int(devices * Fraction(self.max_failed.removesuffix("%")) / 100)
