"""The settings that a run keeps so that it can be resumed, and where other settings differ from them."""

import os
import shlex
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from auditor.config import Settings, settings_from
from auditor.errors import RunFolderError, SettingsError
from auditor.inventory.folder import Manifest, read_manifest

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


def settings_to_resume(folder: Path, given: Settings | None) -> Settings:
    """The settings for a run's next stretch: its own, or given ones that ask the same accounts.

    Raises:
        RunFolderError: the run keeps none that can be used, or those that were given ask another platform.
    """
    manifest = read_manifest(folder)
    if given is None:
        return settings_of(folder, manifest)
    if manifest.settings is None:
        known = {(account.name, account.endpoint, account.dialect) for account in manifest.accounts}
        other = ["its accounts are others"] if known != {(a.name, a.endpoint, a.dialect) for a in given.account} else []
        fleets = {account.name: account.fleet for account in given.account}
    else:
        before = settings_of(folder, _without_ca_files(manifest))
        other = differences(before, given, besides=HOW)
        fleets = {account.name: account.fleet for account in before.account}
    if other:
        raise RunFolderError(f"{folder}: cannot be resumed with these settings: {'; '.join(other)}")
    accounts = tuple(msgspec.structs.replace(each, fleet=fleets.get(each.name)) for each in given.account)
    return msgspec.structs.replace(given, account=accounts)


def _without_ca_files(manifest: Manifest) -> Manifest:
    """A manifest whose settings can be read though an authority's file has moved: other settings name another one."""
    table = manifest.settings or {}
    accounts = table.get("account")
    if not isinstance(accounts, list):
        return manifest
    kept = [{key: each[key] for key in each if key != "ca_file"} for each in accounts if isinstance(each, dict)]
    return replace(manifest, settings={**table, "account": kept})


def refuse_other_settings(folder: Path, settings: Settings, limit: int | None) -> None:
    """Refuses settings that are not those that a run was asked with last; where keys lie may differ.

    Raises:
        RunFolderError: they differ, and in what.
    """
    manifest = read_manifest(folder)
    before = settings_of(folder, manifest)
    other = differences(before, settings)
    advice = f"or take them for what is left: auditor resume {shlex.quote(str(folder))} --settings CONFIG"
    if {each.name: each.fleet for each in before.account} != {each.name: each.fleet for each in settings.account}:
        advice = "for a run keeps its fleet"
    if manifest.fleet.limit != limit:
        other.append(f"limit was {_told(manifest.fleet.limit)} and is {_told(limit)}")
        advice = "or give the same limit"
    if other:
        raise RunFolderError(
            f"{folder}: was asked with other settings: {'; '.join(other)}. Leave out --resume to begin anew, {advice}"
        )


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


def settings_of(folder: Path, manifest: Manifest) -> Settings:
    """The settings that a run was begun with.

    Raises:
        RunFolderError: the run has none, or none that can be used.
    """
    if manifest.settings is None:
        raise RunFolderError(f"{folder}: its run.json keeps no settings; give them with --settings")
    try:
        return settings_from(manifest.settings, where=f"{folder}/run.json: settings")
    except SettingsError as error:
        raise RunFolderError(f"{error}; give other settings with --settings") from error


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
