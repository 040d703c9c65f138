"""The settings' tables as immutable values. ``loader`` reads them from TOML, ``validation`` checks them."""

import difflib
from collections.abc import Collection
from fractions import Fraction
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from auditor.config.sections import MetricsSettings
from auditor.config.sections import SecretSource as SecretSource  # noqa: PLC0414  modules import it from here
from auditor.config.sections import Section as _Section
from auditor.errors import UsageError
from auditor.models import ChangeDetection, DeviceStatus, Dialect, Level, ReadMethod, ReadModules

CredentialsType = Literal[
    "access_key", "sts", "ram_role_arn", "oidc_role_arn", "ecs_ram_role", "credentials_uri", "profile", "default",
]  # fmt: skip
"""Ways to an access key, named as in the vendor's library."""


class CredentialsSettings(_Section, frozen=True, omit_defaults=True):
    """How to get an access key, again and again if it is temporary.

    Attributes:
        type: way to the key: ``access_key``, ``sts``, ``ram_role_arn``, ``oidc_role_arn``, ``ecs_ram_role``,
            ``credentials_uri``, ``profile`` of ``aliyun configure``, or ``default``, the default chain of the vendor's
            library.
        access_key_id, access_key_secret, security_token: where they are stored; for access_key and sts.
        role_arn: the role to assume, such as ``acs:ram::123456789:role/auditor``.
        source: credentials with which a role is assumed.
        role_session_name: name of the session in the vendor's audit log.
        role_session_expiration: seconds for which a key of a role is valid, from 900.
        external_id: external id that the role requires.
        sts_endpoint: host of the security token service; None: ``sts.aliyuncs.com``.
        oidc_provider_arn, oidc_token_file: the identity provider, and the file that its token is in.
        role_name: role of the ECS instance; None: the one that it has.
        credentials_uri: address of a service that returns a temporary key, or where the address is stored.
        profile: name of the profile.
        command: program and arguments that print a key.
        format: of what the command prints: ``json``.
    """

    type: CredentialsType | None = None
    access_key_id: str | SecretSource | None = None
    access_key_secret: SecretSource | None = None
    security_token: SecretSource | None = None
    role_arn: str | None = None
    source: "CredentialsSettings | None" = None
    role_session_name: str | None = None
    role_session_expiration: int | None = None
    external_id: str | None = None
    sts_endpoint: str | None = None
    oidc_provider_arn: str | None = None
    oidc_token_file: str | None = None
    role_name: str | None = None
    credentials_uri: str | SecretSource | None = None
    profile: str | None = None
    command: tuple[str, ...] | None = None
    format: Literal["json"] | None = None


class Patterns(_Section, frozen=True, omit_defaults=True):
    """Filter for devices of a discovered fleet. An empty list matches every device.

    Attributes:
        product_key, device_name: glob patterns such as ``lamp_*``; case counts.
        status: reported statuses; ``UNACTIVE`` is a device that was never activated.
    """

    product_key: tuple[str, ...] = ()
    device_name: tuple[str, ...] = ()
    status: tuple[DeviceStatus, ...] = ()


class FleetSource(_Section, frozen=True, omit_defaults=True):
    """Source of an account's devices: either a fleet file, or discovery on the platform.

    Attributes:
        file: a fleet file; ``-`` is standard input.
        products: ``"all"``, or product keys; every device of these products.
        include: keep only discovered devices that match every list of these patterns.
        exclude: drop discovered devices that match any list of these patterns.
        query_never_activated: query devices that were never activated, too; they cannot have reported a version.
    """

    file: str | None = None
    products: Literal["all"] | tuple[str, ...] | None = None
    include: Patterns = Patterns()
    exclude: Patterns = Patterns()
    query_never_activated: bool = False

    @property
    def filters_devices(self) -> bool:
        """True if some devices of a discovered product may be excluded."""
        return any(patterns.device_name or patterns.status for patterns in (self.include, self.exclude))


class Quotas(
    _Section,
    frozen=True,
    omit_defaults=True,
    rename={
        "query_product_list": "QueryProductList",
        "query_device": "QueryDevice",
        "query_device_deep": "QueryDeviceDeep",
        "query_device_by_sql": "QueryDeviceBySQL",
        "list_ota_module_by_product": "ListOTAModuleByProduct",
        "batch_get_device_state": "BatchGetDeviceState",
        "batch_query_device_detail": "BatchQueryDeviceDetail",
        "list_ota_firmware": "ListOTAFirmware",
        "list_ota_job_by_firmware": "ListOTAJobByFirmware",
        "list_ota_task_by_job": "ListOTATaskByJob",
    },
):
    """An account's quotas for the other operations, in calls a second. None means the default that Alibaba documents.

    Attributes:
        query_product_list: ``QueryProductList``, default 50.
        query_device: ``QueryDevice``, default 50.
        query_device_deep: ``QueryDevice`` past the first 100,000 devices of a product, default 2.
        query_device_by_sql: ``QueryDeviceBySQL``, default 10.
        list_ota_module_by_product: ``ListOTAModuleByProduct``, default 10.
        batch_get_device_state: ``BatchGetDeviceState``, default 50.
        batch_query_device_detail: ``BatchQueryDeviceDetail``, default 5.
        list_ota_firmware: ``ListOTAFirmware``, default 10.
        list_ota_job_by_firmware: ``ListOTAJobByFirmware``, default 10.
        list_ota_task_by_job: ``ListOTATaskByJob``, default 10.
    """

    query_product_list: float | None = None
    query_device: float | None = None
    query_device_deep: float | None = None
    query_device_by_sql: float | None = None
    list_ota_module_by_product: float | None = None
    batch_get_device_state: float | None = None
    batch_query_device_detail: float | None = None
    list_ota_firmware: float | None = None
    list_ota_job_by_firmware: float | None = None
    list_ota_task_by_job: float | None = None


class SharedQuotaSettings(_Section, frozen=True):
    """A place where several processes share an account's quota: either a directory or a Redis server.

    Attributes:
        directory: a directory that all of them can write to.
        redis: an address such as ``rediss://HOST:6379/0``; ``redis://`` without TLS.
        username, password: of the Redis server.
        ca_file: certificates, one of which the server's is signed by; for ``rediss://``.
    """

    directory: str | None = None
    redis: str | None = None
    username: str | None = None
    password: SecretSource | None = None
    ca_file: str | None = None


QuotaSharing = SharedQuotaSettings | Literal["machine", "none"]
"""Which processes share an account's quota."""


class PolicySettings(_Section, frozen=True):
    """The policy that is evaluated after each run.

    Attributes:
        file: file of rules.
    """

    file: str


class ReportSettings(_Section, frozen=True):
    """Files that are written after each run.

    Attributes:
        html: the report. True: ``report.html`` in the run folder; a path: that file, replaced by each run.
        excel: the inventory as an Excel workbook. True: ``inventory.xlsx`` in the run folder; a path: that file.
        metrics: a file of Prometheus metrics for node_exporter's textfile collector.
        group_by: attributes by which the report and the metrics count devices, too, such as site; at most 4.
    """

    html: bool | str = False
    excel: bool | str = False
    metrics: str | None = None
    group_by: tuple[str, ...] = ()


class RolloutSettings(_Section, frozen=True, omit_defaults=True):
    """When a rollout is done, moving, stalled, rolled back or not started. Percentages are of a product's devices.

    Attributes:
        done: share on the target from which a rollout is done.
        moving: points of the share that a rollout gains within ``stalled_after``; otherwise it is stalled.
        stalled_after: time in which it must have gained them.
        rolled_back: points below its peak from which it is rolled back.
        started: share on the target from which a rollout has started.
        selected: share of the devices up to which a version is a beta, if its jobs are only for selected devices.
        answered: share of a product's devices that must have answered for a run to count.
    """

    done: str = "95%"
    moving: str = "0.8%"
    stalled_after: str = "3d"
    rolled_back: str = "10%"
    started: str = "1%"
    selected: str = "10%"
    answered: str = "90%"


class NotifySettings(_Section, frozen=True, omit_defaults=True):
    """A place that receives a message about each run: a chat, a mailbox, or a program.

    Attributes:
        name: name for messages of the auditor.
        address: where an Apprise address such as ``slack://…`` is stored. It contains a token.
        webhook: where the address of a webhook is stored, which receives JSON. It takes the place of ``address``. Every
            answer 2xx counts as delivered: use ``address`` for a chat.
        secret: where the secret is stored that signs what a webhook receives: ``whsec_`` and base64.
        when: ``always``; ``problems``: exit code other than 0, a violated rule, a failed hook, or a warning about the
            numbers; ``changes``: something changed since the previous run, or it had another exit reason.
        message: text with fields such as ``{verdict}``, see docs/notify.md; None: all fields, a line each.
        link: address of the report, which the message contains. ``{run}`` in it is the name of the run folder.
    """

    name: str
    address: SecretSource | None = None
    webhook: SecretSource | None = None
    secret: SecretSource | None = None
    when: Literal["always", "problems", "changes"] = "always"
    message: str | None = None
    link: str | None = None


class ClusterSettings(_Section, frozen=True, omit_defaults=True):
    """An audit on several machines; see docs/cluster.md.

    Attributes:
        storage: where runs are stored: a directory that all machines mount, or the address of a bucket.
        checkpoint: seconds between two checkpoints: the answers that are lost with a machine.
    """

    storage: str
    checkpoint: float = 10.0


class Account(_Section, frozen=True):
    """One account of a platform: endpoint, keys, quota and fleet.

    Attributes:
        name: label of the account in files and messages.
        endpoint: address of the platform, ``https://HOST:PORT/``.
        dialect: spelling of the platform's answers, ``tuya`` or ``alibaba``.
        region_id, instance_id: Alibaba only.
        access_key_id, access_key_secret: where they are stored; a secret in the settings themselves is refused.
        credentials: other ways to an access key, such as a temporary one; instead of the two.
        calls_per_second: the account's quota for the main operation; ``"unlimited"`` for a platform of your own;
            ``"auto"`` finds the limit, starting at 10.
        quota_share: fraction of the quota to use, above 0 and up to 1.
        ca_file: PEM file with the authorities to trust instead of the system's.
        proxy: ``http://HOST:PORT``; where the address is stored, if it contains a password; or ``"environment"``, which
            honours HTTPS_PROXY, HTTP_PROXY and NO_PROXY. None ignores these variables.
        fleet: source of the devices.
        quotas: quotas of the other operations.
        read: ``"device"``: query each device. ``"index"``: read the platform's search index, 50 devices a call, and
            query only those of the recheck. ``"auto"``: do that, and query all devices if the recheck shows an error
            above ``max_index_error``. Where the platform has no index, all devices are queried.
        fetch_product_modules: fetch the modules that each product defines; None: only for discovered fleets. A run that
            reads some modules only does not fetch them.
        site: in an audit on several machines, the site whose workers query the account; None: any.
        lanes: into how many shards such an audit cuts the account; None: one for each 5,000 calls a second.
    """

    name: str
    endpoint: str
    access_key_id: str | SecretSource | None = None
    access_key_secret: SecretSource | None = None
    credentials: CredentialsSettings | None = None
    dialect: Dialect = "tuya"
    region_id: str | None = None
    instance_id: str | None = None
    calls_per_second: float | Literal["unlimited", "auto"] = 10.0
    quota_share: float = 1.0
    ca_file: str | None = None
    proxy: str | SecretSource | None = None
    fleet: FleetSource | None = None
    quotas: Quotas = Quotas()
    read: ReadMethod = "device"
    fetch_product_modules: bool | None = None
    site: str | None = None
    lanes: int | None = None

    @property
    def uses_discovery(self) -> bool:
        """True if the fleet is discovered on the platform."""
        return self.fleet is not None and self.fleet.products is not None

    @property
    def skips_never_activated(self) -> bool:
        """Whether devices that the platform reports as never activated are not queried."""
        return self.uses_discovery and self.fleet is not None and not self.fleet.query_never_activated

    @property
    def rate(self) -> float | None:
        """Calls a second to use; None if there is no quota, or an unknown one."""
        return None if isinstance(self.calls_per_second, str) else self.calls_per_second * self.quota_share

    @property
    def host_and_port(self) -> tuple[str | None, int]:
        """Host and port of the endpoint. Together with the key they identify a quota."""
        parts = urlsplit(self.endpoint)
        return parts.hostname, parts.port or {"https": 443}.get(parts.scheme, 80)


OptionSetting = str | int | bool | SecretSource
"""An option of a destination."""


class PublishSettings(_Section, frozen=True, omit_defaults=True):
    """A destination to which each run is published.

    Attributes:
        name: name for messages and ``auditor publish --to``.
        type: ``"files"``, ``"postgresql"``, or what an installed package adds.
        options: options of the destination, such as ``{ to = "s3://lake/auditor" }``. Secrets are stored elsewhere.
        timeout: time for the run, and for runs that the destination does not have yet, such as ``"10m"``.
    """

    name: str
    type: str
    options: dict[str, OptionSetting] = {}  # noqa: RUF012  msgspec copies it
    timeout: str = "10m"


class SelectionSettings(_Section, frozen=True):
    """Selection of the devices to query, if that is not the complete fleet.

    Attributes:
        since: earlier run whose results are carried forward for devices that cannot have changed: ``"last"``, or a run
            folder. ``"none"``: carry nothing forward, even with a budget.
        change_detection: when a device may have changed. ``strict``: it is online, or was since its last result;
            ``reconnected``: it came online since then.
        max_age: maximum age of a result that is carried forward, such as ``"30d"``; None: no limit.
        recheck: percentage of the carried results, and of those of the index, that are queried anyway, at random.
        max_index_error: percentage of the index's results that may be wrong where ``read`` is ``"auto"``.
        max_calls: budget of calls, for all accounts together, divided by their quotas.
        fair_share: percentage of a budget that is divided among products by size, for their oldest results. The rest
            goes to the devices with the highest priority.
        sample_size: query this many devices, at random.
        precision: query as many devices, at random, as shares of this precision need, such as ``"1%"``.
        precision_of: population of these shares: all devices, the devices with a module, or those of one product.
        seed: random seed; None: a new one for each run, which the run stores.
    """

    since: str | None = None
    change_detection: ChangeDetection = "strict"
    max_age: str | None = None
    recheck: str = "1%"
    max_index_error: str = "1%"
    max_calls: int | None = None
    fair_share: str = "90%"
    sample_size: int | None = None
    precision: str | None = None
    precision_of: Level = "fleet"
    seed: int | None = None

    @property
    def is_sample(self) -> bool:
        """True if a random sample is queried."""
        return self.sample_size is not None or self.precision is not None


def parse_percentage(text: str) -> float:
    """Return the fraction, 0 to 1, of a percentage such as ``"0.1%"``."""
    return float(Fraction(text.removesuffix("%")) / 100)


def count_allowed(max_failed: int | str, devices: int) -> int:
    """Return ``max_failed``, a number or a percentage such as ``"0.1%"``, as a number of a fleet's devices."""
    if isinstance(max_failed, int):
        return max_failed
    return int(devices * Fraction(max_failed.removesuffix("%")) / 100)


def split_url(url: str) -> SplitResult | None:
    """Return the parts of an address; None if it has no host, or its port is not one."""
    try:
        parts = urlsplit(url)
        valid = parts.hostname and parts.port != 0
    except ValueError:  # a malformed port, or an unbalanced bracket
        return None
    return parts if valid else None


class Settings(SelectionSettings, frozen=True, kw_only=True):
    """Settings of an audit.

    Attributes:
        account: the accounts, audited concurrently.
        name: part of the run folder's name.
        directory: where run folders are created.
        concurrency: maximum number of requests in flight, divided among the accounts by their quotas.
        modules: ``["default"]``: read only this module, 100 devices a call; None: all modules.
        page_size: modules per request, 1 to 200.
        max_attempts: maximum number of requests for one page; throttling responses do not count, nor requests without a
            connection before the first answer of an account.
        timeout: seconds for a complete request.
        connect_timeout: seconds for getting a connection.
        give_up_after: seconds without a usable answer until an account is stopped that gave none in this run; after its
            first answer it is ten minutes. A run with ``--for`` or ``--deadline`` waits until its end for an account
            that was answered before, in this run or an earlier one with the same endpoint.
        max_failed: devices that may fail or stay pending, as a number or a percentage such as ``"0.1%"``.
        group_readable: whether the group of the user may read run folders; otherwise only the user may.
        fsync_interval: seconds between syncs of results to disk, the most that a power cut can lose; 0: sync each one.
        retry_budget: fraction of an account's quota that retries may use; retries over budget wait.
        quota_sharing: ``"machine"``: all processes of this user on this machine share an account's quota; ``"none"``:
            nothing is shared; or a place that other users and machines reach, too.
        time_zone: zone of times in tables for people, an IANA name such as ``"Asia/Shanghai"``; None: UTC. Files and
            machine formats are in UTC.
        released: read which firmware was released, and the update tasks of its jobs, after the devices.
        max_job_age: maximum age of a job whose tasks are read, such as ``"30d"``; a job in progress
            has no limit.
        rollouts: when a rollout is done, moving, stalled, rolled back or not started.
        policy, report: hooks that run after each run; see ``run_hooks``.
        metrics: what ``report.metrics`` has, and where metrics are pushed.
        notify: places that receive a message about each run.
        ping: where the address of a dead man's switch is stored, to which each run reports its start and its end.
        publish: destinations to which each run is published.
        cluster: where an audit on several machines is stored; None: ``auditor cut`` is not used.
    """

    account: tuple[Account, ...]
    name: str = "audit"
    directory: str = "audits"
    concurrency: int = 64
    modules: ReadModules | None = None
    page_size: int = 200
    max_attempts: int = 8
    timeout: float = 30.0
    connect_timeout: float = 10.0
    give_up_after: float = 60.0
    max_failed: int | str = 0
    group_readable: bool = False
    fsync_interval: float = 1.0
    retry_budget: float = 0.1
    quota_sharing: QuotaSharing = "machine"
    time_zone: str | None = None
    released: bool = False
    max_job_age: str = "30d"
    rollouts: RolloutSettings = RolloutSettings()
    policy: PolicySettings | None = None
    report: ReportSettings = ReportSettings()
    metrics: MetricsSettings = MetricsSettings()
    notify: tuple[NotifySettings, ...] = ()
    ping: SecretSource | None = None
    publish: tuple[PublishSettings, ...] = ()
    cluster: ClusterSettings | None = None

    def fetches_modules_of(self, account: Account) -> bool:
        """Return whether a run fetches the modules that an account's products define; only if it reads all modules."""
        fetches = account.uses_discovery if account.fetch_product_modules is None else account.fetch_product_modules
        return fetches and self.modules is None

    def restrict_to_accounts(self, names: Collection[str]) -> "Settings":
        """Return the settings with only these accounts, in the order of the settings.

        Raises:
            UsageError: an account does not exist, or ``names`` is empty. The message lists the accounts that exist.
        """
        configured = [account.name for account in self.account]
        quoted = ", ".join(f'"{each}"' for each in configured)
        if not names:
            raise UsageError(f"no account was named; the settings have {quoted}")
        for name in names:
            if name not in configured:
                near = difflib.get_close_matches(name, configured, n=1)
                hint = f'; did you mean "{near[0]}"?' if near else "; give one of these"
                raise UsageError(f'account "{name}": is not in the settings, which have {quoted}{hint}')
        return msgspec.structs.replace(self, account=tuple(each for each in self.account if each.name in names))
