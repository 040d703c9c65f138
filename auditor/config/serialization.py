"""The settings that a run keeps so that it can be resumed, and where other settings differ from them."""

import os
from collections.abc import Collection
from typing import Any

import msgspec

from auditor.config.settings import Settings

BESIDES = frozenset({"name", "directory", "access_key_id", "access_key_secret", "policy", "report", "notify"})
"""Settings that say where run folders and keys lie, for a key may be mended or changed between two stretches, and what
follows a run, which changes nothing in it."""


HOW = BESIDES | {
    "at_once", "page_size", "attempts", "timeout", "connect_timeout", "give_up_after", "max_failed", "fsync_every",
    "per_second", "share", "retry_budget", "budget", "ca_file", "proxy", "fleet", "since", "since_rule", "max_age",
    "recheck", "calls", "guaranteed", "sample", "precision", "precision_of", "seed",
}  # fmt: skip
"""Settings that say how an audit asks; the others say whom. The fleet is the run's own, whatever its source is now,
and so is whom it chose to ask."""


_PATHS = ("file", "ca_file", "directory", "html", "excel", "metrics")


def table_of(settings: Settings) -> dict[str, Any]:
    """The settings as a table that ``settings_from`` reads wherever it is: every path is absolute.

    It says where keys lie, and holds no secret: the address of a webhook may be one, and is left out if it is written
    out in the settings.
    """
    if settings.notify is not None and isinstance(settings.notify.webhook, str):
        settings = msgspec.structs.replace(settings, notify=msgspec.structs.replace(settings.notify, webhook=None))
    table: dict[str, Any] = _absolute(msgspec.to_builtins(settings))
    return table | {"directory": os.path.abspath(settings.directory)}  # noqa: PTH100  as below


def _absolute(value: Any) -> Any:  # noqa: ANN401  a table, a list or a leaf of one
    """A table without what is not set, and with absolute paths in place of relative ones."""
    if isinstance(value, dict):
        kept = {key: _absolute(each) for key, each in value.items() if each is not None and each != {}}
        paths = {key: kept[key] for key in _PATHS if isinstance(kept.get(key), str) and kept[key] != "-"}
        # Not Path.absolute, which keeps "..", nor Path.resolve, which follows links that may be turned on purpose.
        command = kept.get("command")
        if command and os.sep in command[0]:
            kept["command"] = [os.path.abspath(command[0]), *command[1:]]  # noqa: PTH100
        return kept | {key: os.path.abspath(path) for key, path in paths.items()}  # noqa: PTH100
    return [_absolute(each) for each in value] if isinstance(value, list | tuple) else value


def differences(before: Settings, now: Settings, *, besides: Collection[str] = BESIDES) -> list[str]:
    """Where settings differ, such as ``account "eu": per_second was 10.0 and is 5.0``.

    Args:
        before: what was.
        now: what is to be.
        besides: keys that do not count.
    """
    old, new = table_of(before), table_of(now)
    accounts, now_accounts = ({each["name"]: each for each in table.pop("account")} for table in (old, new))
    found = [f'account "{name}" is gone' for name in accounts if name not in now_accounts]
    found += [f'account "{name}" is new' for name in now_accounts if name not in accounts]
    found += _between("", old, new, besides)
    for name, account in accounts.items():
        if name in now_accounts:
            found += _between(f'account "{name}": ', account, now_accounts[name], besides)
    return found


def _between(where: str, old: dict[str, Any], new: dict[str, Any], besides: Collection[str]) -> list[str]:
    return [
        f"{where}{key} was {_told(old.get(key))} and is {_told(new.get(key))}"
        for key in dict.fromkeys((*old, *new))
        if old.get(key) != new.get(key) and key not in besides
    ]


def _told(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_told(each)}" for key, each in value.items()) + " }"
    return "not set" if value is None else f'"{value}"' if isinstance(value, str) else str(value)
