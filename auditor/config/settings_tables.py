"""The tables of settings in TOML: the type of each, what to give for a key, and values that no rule refuses."""

from collections.abc import Mapping

import msgspec

from auditor.config.sections import MetricsSettings, PushgatewaySettings
from auditor.config.settings import (
    ClusterSettings,
    CredentialsSettings,
    FleetSource,
    NotifySettings,
    Patterns,
    PolicySettings,
    PublishSettings,
    Quotas,
    ReportSettings,
    RolloutSettings,
    SecretSource,
    SharedQuotaSettings,
)
from auditor.config.validation import CREDENTIALS_FORMS, CREDENTIALS_TYPES, SOURCE_FORMS, unnamed_account

_SECRET = {"env": "PLACEHOLDER"}


def _placeholders_of_secrets(*paths: str) -> dict[str, object]:
    keys: dict[str, object] = {**_SECRET, "file": "/placeholder", "command": ["placeholder"]}
    return {f"{path}.{key}": value for path in paths for key, value in keys.items()}


PLACEHOLDERS: dict[str, object] = {
    "quota_sharing.directory": "/",
    "quota_sharing.redis": "rediss://placeholder.invalid",
    "quota_sharing.password": _SECRET,
    "notify[]": {"name": "placeholder-table", "webhook": _SECRET},
    "notify.address": _SECRET,
    "notify.webhook": _SECRET,
    "notify.secret": _SECRET,
    "ping": _SECRET,
    "metrics.interval": "off",
    "metrics.max_series": 10,
    "metrics.pushgateway.address": "https://placeholder.invalid",
    "metrics.pushgateway.password": _SECRET,
    "policy.file": "placeholder",
    "rollouts.done": "100%",
    "modules[]": "default",
    "publish.type": "placeholder",
    "cluster.storage": "/placeholder",
    **_placeholders_of_secrets(
        "quota_sharing.password",
        "metrics.pushgateway.password",
        "notify.address",
        "notify.webhook",
        "notify.secret",
        "ping",
        "publish.options",
    ),
}
"""Values that no rule refuses, in place of values of a wrong type: so other keys of the table can be checked."""

_CREDENTIALS_PLACEHOLDERS: dict[str, object] = {
    "type^": {"type": "default"},
    "access_key_id": "placeholder",
    "access_key_secret": _SECRET,
    "security_token": _SECRET,
    "role_arn": "acs:ram::1:role/placeholder",
    "source": {"type": "default"},
    "oidc_provider_arn": "placeholder",
    "oidc_token_file": "/placeholder",
    "credentials_uri": "http://placeholder.invalid",
    "profile": "placeholder",
    "command": ["placeholder"],
    "format": "json",
    **_placeholders_of_secrets("access_key_id", "access_key_secret", "security_token", "credentials_uri"),
}


def account_placeholders(raw: object, number: int) -> dict[str, object]:
    """Return values that no rule refuses, also not together with those of other accounts."""
    reads_index = isinstance(raw, Mapping) and raw.get("read", "device") != "device"
    keys = {
        "name": unnamed_account(number),
        "endpoint": f"https://account-{number}.invalid",
        "access_key_id": {"env": f"ACCOUNT_{number}"},
        "access_key_secret": _SECRET,
    }
    return {
        "": keys,
        **keys,
        **_placeholders_of_secrets("access_key_secret", "proxy"),
        "proxy": _SECRET,
        "access_key_id.env": f"ACCOUNT_{number}",
        "access_key_id.file": f"/account-{number}",
        "access_key_id.command": [f"account-{number}"],
        "credentials": {"type": "default"},
        **{
            f"{path}.{key}": value
            for path in ("credentials", "credentials.source", "credentials.source.source")
            for key, value in _CREDENTIALS_PLACEHOLDERS.items()
        },
        "region_id": "placeholder",
        "fleet.file": "-",
        "fleet.products": "all",
        "fleet.include.status[]": "ONLINE",
        "fleet.exclude.status[]": "ONLINE",
        **({"fleet": {"products": "all"}} if reads_index else {}),
    }


def struct_at(path: str) -> type[msgspec.Struct]:
    """Return the struct of the table at a path. Every table that is not listed is the source of a secret."""
    return CredentialsSettings if path.endswith(".source") else _TABLES.get(path, SecretSource)


_NAMES = 'glob patterns, such as ["lamp-*"]'

_PATTERNS = '{ product_key = ["k1*"], device_name = ["lamp-*"], status = ["ONLINE"] }, each of them optional'

_COMMAND = 'give the words of a command, such as ["pass", "show", "iot/eu"]'

EXPECTED = {
    "dialect": 'give "tuya" or "alibaba"',
    "calls_per_second": 'give calls a second, "unlimited" or "auto"',
    "quota_sharing": 'give "machine", "none", { directory = "/run/auditor" } or { redis = "rediss://HOST:6379/0" }',
    "quota_sharing.password": f"give {SOURCE_FORMS}",
    "fleet": 'give { file = "fleet.csv" }, where "-" is standard input, or { products = "all" }',
    "fleet.products": 'give "all", or product keys such as ["k1h9drZble"]',
    "fleet.include": f"give {_PATTERNS}",
    "fleet.exclude": f"give {_PATTERNS}",
    "fleet.include.product_key": f"give {_NAMES}",
    "fleet.include.device_name": f"give {_NAMES}",
    "fleet.exclude.product_key": f"give {_NAMES}",
    "fleet.exclude.device_name": f"give {_NAMES}",
    "fleet.query_never_activated": "give true or false",
    "fetch_product_modules": "give true or false",
    "read": 'give "device", "index" or "auto"',
    "quotas": "give calls a second by operation, such as { QueryDevice = 50 }",
    "fleet.include.status": "give ONLINE, OFFLINE, UNACTIVE or DISABLE",
    "fleet.exclude.status": "give ONLINE, OFFLINE, UNACTIVE or DISABLE",
    "access_key_secret": f"give {SOURCE_FORMS}",
    "proxy": f'give "http://HOST:PORT", "environment", or for an address with a password: {SOURCE_FORMS}',
    "policy": 'give { file = "rules.toml" }',
    "report.html": 'give true, or a path such as "fleet.html"',
    "report.excel": 'give true, or a path such as "fleet.xlsx"',
    "report.metrics": 'give a path such as "/var/lib/node_exporter/textfile/auditor.prom"',
    "report.group_by": 'give names of attributes such as ["site", "ring"]',
    "metrics": 'give { interval = "15s", modules = ["mcu"], max_series = 1000 }',
    "metrics.interval": 'give a duration such as "15s", or "off"',
    "metrics.modules": f"give {_NAMES}",
    "metrics.max_series": "give a whole number, such as 1000",
    "metrics.pushgateway": 'give { address = "https://pushgateway.example:9091" }',
    "metrics.pushgateway.password": f"keep it out of the settings: give {SOURCE_FORMS}",
    "notify": "give it a name, and an address or a webhook; there may be several of these tables",
    "notify.address": f"keep it out of the settings: give {SOURCE_FORMS}",
    "notify.webhook": f"keep it out of the settings: give {SOURCE_FORMS}",
    "notify.secret": f"keep it out of the settings: give {SOURCE_FORMS}",
    "notify.when": 'give "always", "problems" or "changes"',
    "notify.message": 'give a text such as "{verdict}"',
    "notify.link": 'give an address such as "https://reports.example.com/{run}/report.html"',
    "ping": f"keep it out of the settings: give {SOURCE_FORMS}",
    "publish": "give tables [[publish]] with name, type and options",
    "publish.options": 'give options such as { to = "s3://lake/auditor" }',
    "publish.timeout": 'give a duration such as "10m"',
    "since": 'give "last", a run folder, or "none"',
    "change_detection": 'give "strict" or "reconnected"',
    "precision_of": 'give "fleet", "module" or "product"',
    "max_age": 'give a duration such as "30d"',
    "recheck": 'give a percentage such as "1%"',
    "max_index_error": 'give a percentage such as "1%"',
    "fair_share": 'give a percentage such as "90%"',
    "precision": 'give a percentage such as "1%"',
    "modules": 'give ["default"], the only module that the platform reads in bulk, or leave it out for all modules',
    "released": "give true or false",
    "max_job_age": 'give a duration such as "30d"',
    "rollouts": 'give thresholds such as { done = "95%", stalled_after = "3d" }',
    "rollouts.stalled_after": 'give a duration such as "3d"',
    "cluster": 'give { storage = "/mnt/audits" } or { storage = "s3://BUCKET/audits" }',
    "cluster.checkpoint": "give a number of seconds, such as 10",
    "site": 'give the name of a site, such as "frankfurt"',
    "lanes": "give a whole number, such as 3",
    "max_failed": 'give a number of devices, or a percentage of them such as "0.1%"',
} | {
    f"rollouts.{key}": f'give a percentage such as "{example}"'
    for key, example in msgspec.structs.asdict(RolloutSettings()).items() if key != "stalled_after"
} | {
    f"{key}.command": _COMMAND
    for key in (
        "access_key_id", "access_key_secret", "proxy", "quota_sharing.password", "notify.address", "notify.webhook",
        "notify.secret", "ping", "metrics.pushgateway.password",
    )
} | {
    f"credentials{sources}{key}": advice
    for sources in ("", ".source", ".source.source")
    for key, advice in {
        "": f"give {CREDENTIALS_FORMS}",
        ".type": f"give one of {CREDENTIALS_TYPES}",
        ".access_key_id": f'give "LTAI…" or {SOURCE_FORMS}',
        ".access_key_secret": f"keep it out of the settings: give {SOURCE_FORMS}",
        ".security_token": f"keep it out of the settings: give {SOURCE_FORMS}",
        ".access_key_id.command": _COMMAND,
        ".access_key_secret.command": _COMMAND,
        ".security_token.command": _COMMAND,
        ".credentials_uri": f'give "http://HOST:PORT/PATH" or {SOURCE_FORMS}',
        ".credentials_uri.command": _COMMAND,
        ".role_session_expiration": "give whole seconds from 900 to 43,200",
        ".command": 'give the words of a command, such as ["vault", "read", "-format=json", "alicloud/creds/auditor"]',
        ".format": 'give "json"',
    }.items()
}  # fmt: skip
"""What to give for a key whose value has the wrong type."""

_TABLES: dict[str, type[msgspec.Struct]] = {
    "credentials": CredentialsSettings,
    "fleet": FleetSource,
    "fleet.include": Patterns,
    "fleet.exclude": Patterns,
    "quotas": Quotas,
    "quota_sharing": SharedQuotaSettings,
    "policy": PolicySettings,
    "report": ReportSettings,
    "metrics": MetricsSettings,
    "metrics.pushgateway": PushgatewaySettings,
    "rollouts": RolloutSettings,
    "notify": NotifySettings,
    "publish": PublishSettings,
    "cluster": ClusterSettings,
}
"""Tables by path."""
