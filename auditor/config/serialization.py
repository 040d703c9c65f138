"""Settings as a run stores them, so that it can be resumed, and how other settings differ from them."""

import os
from collections.abc import Collection
from typing import Any

import msgspec

from auditor.config.settings import Settings

LOCATION_KEYS = frozenset(
    {
        "name", "directory", "group_readable", "access_key_id", "access_key_secret", "credentials", "time_zone",
        "rollouts", "policy", "report", "metrics", "notify", "ping", "publish", "cluster", "site", "lanes",
    }
)  # fmt: skip
"""Settings that may differ when a run is resumed: where folders and keys are, which machines query,
and hooks, states of rollouts and time zones of tables, which do not change a run."""

RATE_KEYS = LOCATION_KEYS | {
    "concurrency", "page_size", "max_attempts", "timeout", "connect_timeout", "give_up_after", "max_failed",
    "fsync_interval", "calls_per_second", "quota_share", "quotas", "retry_budget", "quota_sharing", "ca_file", "proxy",
    "released", "max_job_age",
}  # fmt: skip
"""Settings that may differ when the next run continues an unfinished one: how fast and over which way it queries, and
what it reads besides devices."""

RUN_INDEPENDENT_KEYS = RATE_KEYS | {
    "fleet", "since", "change_detection", "max_age", "recheck", "max_calls", "fair_share", "sample_size", "precision",
    "precision_of", "seed",
}  # fmt: skip
"""Settings that do not change which devices a run covers. Its fleet and its selection are already stored in the run,
whatever the settings say now."""

_PATHS = ("file", "oidc_token_file", "ca_file", "directory", "html", "excel", "metrics")


def settings_to_dict(settings: Settings) -> dict[str, Any]:
    """Return the settings as a table for ``parse_settings``. Every path is absolute.

    The table says where secrets are stored and contains none.
    """
    table: dict[str, Any] = _absolute(msgspec.to_builtins(settings))
    return table | {"directory": os.path.abspath(settings.directory)}  # noqa: PTH100  as below


def _absolute(value: Any) -> Any:  # noqa: ANN401  a table, a list or a leaf of one
    """Return a value without unset keys, and with absolute paths."""
    if isinstance(value, dict):
        kept = {key: _absolute(each) for key, each in value.items() if each is not None and each != {}}
        paths = {key: kept[key] for key in _PATHS if isinstance(kept.get(key), str) and kept[key] != "-"}
        # Path.absolute would keep "..", and Path.resolve would follow links that an operator may want to change.
        command = kept.get("command")
        if command and os.sep in command[0]:
            kept["command"] = [os.path.abspath(command[0]), *command[1:]]  # noqa: PTH100
        return kept | {key: os.path.abspath(path) for key, path in paths.items()}  # noqa: PTH100
    return [_absolute(each) for each in value] if isinstance(value, list | tuple) else value


def diff_settings(stored: Settings, other: Settings, *, ignore: Collection[str] = LOCATION_KEYS) -> list[str]:
    """List differences in keys not in ``ignore``, such as ``account "eu": quota_share changed from 1.0 to 0.5``."""
    old, new = settings_to_dict(stored), settings_to_dict(other)
    old_accounts, new_accounts = ({each["name"]: each for each in table.pop("account")} for table in (old, new))
    differences = [f'account "{name}" was removed' for name in old_accounts if name not in new_accounts]
    differences += [f'account "{name}" was added' for name in new_accounts if name not in old_accounts]
    differences += _diff_tables("", old, new, ignore)
    for name, account in old_accounts.items():
        if name in new_accounts:
            differences += _diff_tables(f'account "{name}": ', account, new_accounts[name], ignore)
    return differences


def _diff_tables(where: str, old: dict[str, Any], new: dict[str, Any], ignore: Collection[str]) -> list[str]:
    return [
        f"{where}{key} changed from {format_setting(old.get(key))} to {format_setting(new.get(key))}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key) and key not in ignore
    ]


def format_setting(value: object) -> str:
    """Format a value as in TOML."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {format_setting(each)}" for key, each in value.items()) + " }"
    return "not set" if value is None else f'"{value}"' if isinstance(value, str) else str(value)
