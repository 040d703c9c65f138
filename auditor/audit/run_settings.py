"""Settings of a resumed run: those that its user remembers, or gives. A run folder is data and configures nothing.

A run stores its settings so that people can read them, and their SHA-256. The user who runs an audit keeps the same
settings under this SHA-256 in ``$XDG_STATE_HOME/auditor/settings``. A resume uses these, so that a folder from
elsewhere, or one that was edited, cannot direct requests, run commands, or read and write files.
"""

import contextlib
import hashlib
import os
import pwd
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import orjson

from auditor.config.credentials import describe_credentials
from auditor.config.loader import parse_settings
from auditor.config.serialization import RUN_INDEPENDENT_KEYS, diff_settings, settings_to_dict
from auditor.config.settings import Account, SecretSource, Settings, SharedQuotaSettings
from auditor.errors import RunFolderError, RunNotWritableError, SettingsError
from auditor.log import log
from auditor.runs.manifest import MANIFEST, Manifest, read_manifest
from auditor.storage.files import read_contained, read_regular_file, replace_file
from auditor.storage.foreign_access import describe_foreign_access, find_foreign_access
from auditor.text.shell import format_command

MAX_REMEMBERED = 1_000
"""Settings that are remembered; those that were not used for the longest time are dropped."""

MAX_SETTINGS_BYTES = 16 << 20

_TRUST_DIGITS = 12


def state_directory() -> Path:
    """Return the folder of this user for what auditor remembers: ``$XDG_STATE_HOME/auditor``."""
    if (configured := os.environ.get("XDG_STATE_HOME", "")).startswith("/"):
        return Path(configured, "auditor")
    home = os.environ.get("HOME", "")
    if not home.startswith("/") or not _belongs_to_caller(Path(home)):  # sudo may keep that of the user who calls it
        with contextlib.suppress(KeyError):
            home = pwd.getpwuid(os.geteuid()).pw_dir
    return Path(home or "/nonexistent", ".local", "state", "auditor")


def _belongs_to_caller(path: Path) -> bool:
    with contextlib.suppress(OSError):
        return path.stat().st_uid == os.geteuid()
    return False


def stored_settings(settings: Settings) -> dict[str, object] | None:
    """Return the settings as stored in the manifest; None if a path in them is not UTF-8, which JSON cannot hold."""
    table = settings_to_dict(settings)
    try:
        orjson.dumps(table)
    except TypeError:
        return None
    return table


def settings_digest(table: dict[str, object] | None) -> str | None:
    """Return the SHA-256 of stored settings, whatever the order of their keys."""
    return None if table is None else hashlib.sha256(orjson.dumps(table, option=orjson.OPT_SORT_KEYS)).hexdigest()


def remember_settings(settings: Settings, source: Path | None) -> None:
    """Remember the settings of a run for a resume. If that is not possible, a resume needs ``--settings``.

    ``source`` is the file from which they were loaded, if any.
    """
    table = stored_settings(settings)
    if (digest := settings_digest(table)) is None:
        return
    record = {"settings": table, "file": None if source is None else str(source.absolute())}
    try:
        path = _settings_directory() / f"{digest}.json"
        if source is None and path.exists():  # what is stored also names the file
            os.utime(path)
            return
        if source is not None:
            record["file_sha256"] = hashlib.sha256(read_regular_file(source)).hexdigest()
        path.parent.mkdir(0o700, parents=True, exist_ok=True)
        replace_file(path, orjson.dumps(record))
        by_use = sorted(path.parent.glob("*.json"), key=lambda each: each.stat().st_mtime, reverse=True)
        for unused in by_use[MAX_REMEMBERED:]:
            unused.unlink(missing_ok=True)
    except (OSError, RunNotWritableError, TypeError) as error:
        log.info("settings_not_remembered", reason=str(error))


def _settings_directory() -> Path:
    return state_directory() / "settings"


def _recall(manifest: Manifest) -> dict[str, Any] | None:
    """Return what this user remembers about the settings of a run; None if they are others, or were changed."""
    digest = settings_digest(manifest.settings)
    directory = _settings_directory()
    try:
        if digest is None or digest != manifest.settings_sha256 or find_foreign_access(directory) is not None:
            return None
        record = orjson.loads(read_contained(directory, f"{digest}.json", max_bytes=MAX_SETTINGS_BYTES))
    except (OSError, orjson.JSONDecodeError):
        return None
    return record if isinstance(record, dict) and settings_digest(record.get("settings")) == digest else None


def resume_settings(
    folder: Path, given: Settings | None = None, *, trust: str | None = None, quiet: bool = False
) -> Settings:
    """Return the settings to resume a run with: given ones with the same accounts, or those that the user remembers.

    ``trust`` is the text that a refusal contains. It allows a run folder of another user, or the settings that the
    folder stores, exactly as the refusal described them. Unless ``quiet``, that is logged, and also that the file of
    remembered settings has changed.

    Raises:
        RunFolderError: the run has other accounts; or other users could have changed it, or (without given settings)
            its directory, or its settings are not remembered, and ``trust`` does not allow that. The message says what
            the settings contain. Nothing allows ``credentials`` that the folder stores: they would send a token of the
            caller to an endpoint that the folder names.
    """
    folder = folder.resolve()
    manifest = read_manifest(folder)
    lasting = list(describe_objections(folder, parent=False))  # given settings do not remove these
    objections = lasting if given is not None else list(describe_objections(folder))
    if given is not None:
        settings = _with_fleets_of(folder, manifest, given)
    elif (record := _recall(manifest)) is not None:
        settings = parse_settings(record["settings"], where=f"settings of {folder.name}")
        if not quiet:
            _report_changed_file(record)
    else:
        settings = settings_of(folder, manifest)
        _refuse_credentials(folder, manifest, settings)
        objections.append(f"its settings are not among those of your own earlier runs, in {_settings_directory()}")
    if objections:
        _require_trust(folder, settings, objections, trust, own=given is not None, advise=given is None and not lasting)
        if not quiet:
            log.warning("run_folder_trusted", folder=str(folder), objections=objections)
    return settings


def _refuse_credentials(folder: Path, manifest: Manifest, settings: Settings) -> None:
    """Raise RunFolderError if settings that a folder stores lead to an access key of the caller."""
    for account in settings.account:
        if account.credentials is not None:
            settings_flag = ("--settings", manifest.settings_file or "FILE")
            raise RunFolderError(
                f'{folder}: is not resumed: account "{account.name}" has credentials, which are never taken from a run '
                f"folder, and its settings are not among those of your own earlier runs. Give your own settings: "
                f"{format_command('auditor resume', folder, flags=[settings_flag])}"
            )


def describe_objections(folder: Path, *, parent: bool = True) -> Iterator[str]:
    """Yield why others could have changed a run, a clause each: its folder, manifest, or the folders above it."""
    for path, name in ((folder, "it"), (folder / MANIFEST, MANIFEST), (folder.parent, "its directory")):
        if path != folder.parent or parent:
            try:
                access = describe_foreign_access(path)
                if access is None and path == folder.parent and (above := find_foreign_access(path)) is not None:
                    access = f"is in a folder of others: {above}"
            except OSError as error:
                access = f"cannot be checked: {error.strerror}"
            if access is not None:
                yield f"{name} {access}"


def _require_trust(
    folder: Path, settings: Settings, objections: list[str], trust: str | None, *, own: bool, advise: bool
) -> None:
    """Raise RunFolderError unless ``trust`` allows this folder with these settings.

    ``own`` is whether the user gave the settings, and ``advise`` whether giving them would remove the objections.
    """
    content = f"{folder}\0{settings_digest(stored_settings(settings))}\0{'; '.join(objections)}"
    token = hashlib.sha256(content.encode("utf-8", "surrogateescape")).hexdigest()[:_TRUST_DIGITS]
    if trust == token:
        return
    source = read_manifest(folder).settings_file
    command = format_command("auditor resume", folder, flags=[("--settings", source or "FILE")])
    effects = "; ".join(_describe_effects(settings))
    owner = _other_owner(folder)
    by_owner = (
        "" if owner is None else f"Resume it as its owner: sudo -u {owner} {format_command('auditor resume', folder)}. "
    )
    advice = f"Give your own settings: {command}. " if advise else ""
    raise RunFolderError(
        f"{folder}: is not resumed: {', '.join(objections)}. {by_owner}{advice}"
        f"{'Your' if own else 'Its'} settings {effects}. If all of that is right, add --trust {token}"
    )


def _other_owner(folder: Path) -> str | None:
    """Return the name of the owner of a folder; None: it is the caller, or has no name."""
    with contextlib.suppress(OSError, KeyError):
        owner = folder.stat().st_uid
        return None if owner == os.geteuid() else pwd.getpwuid(owner).pw_name
    return None


def _describe_effects(settings: Settings) -> Iterator[str]:
    """Yield what settings contact, run, read and write."""
    yield f"send requests to {', '.join(_describe_route(account) for account in settings.account)}"
    sharing = settings.quota_sharing
    shared = sharing if isinstance(sharing, SharedQuotaSettings) else SharedQuotaSettings()
    if shared.redis is not None:
        password = "" if shared.password is None else " and send it a password"
        yield f"share quotas through {shared.redis}{password}"
    keys = [describe_credentials(account.credentials) for account in settings.account if account.credentials]
    if keys:
        yield f"get access keys from {', '.join(keys)}"
    sources = list(_secret_sources(settings))
    commands = [shlex.join(source.command) for source in sources if source.command is not None]
    if commands:
        yield f"run {', '.join(commands)}"
    read = [f"${source.env}" for source in sources if source.env is not None]
    read += [source.file for source in sources if source.file is not None]
    ca_files = (*(account.ca_file for account in settings.account), shared.ca_file)
    read += [path for path in ca_files if path is not None]
    read += [settings.policy.file] if settings.policy is not None else []
    yield f"read {', '.join(read) or 'no file'}"
    report = settings.report
    paths = [path for path in (report.html, report.excel, report.metrics, shared.directory) if isinstance(path, str)]
    yield f"write {', '.join(paths) or 'no file outside of the run'}"
    for table in settings.publish:
        options = [f"{key} = {value}" for key, value in table.options.items() if not isinstance(value, SecretSource)]
        yield f"publish to {table.name}, {table.type} with {', '.join(options) or 'no option'}"
    if settings.metrics.pushgateway is not None:
        yield f"push metrics to {settings.metrics.pushgateway.address}"
    if settings.notify:
        yield f"send messages to {', '.join(table.name for table in settings.notify)}"
    if settings.ping is not None:
        yield "report to a dead man's switch"


def _describe_route(account: Account) -> str:
    """Return where the requests of an account go: its endpoint, and the proxy on the way."""
    if account.proxy is None:
        return account.endpoint
    if not isinstance(account.proxy, str):
        return f"{account.endpoint} through a proxy whose address is a secret"
    proxy = "your environment's proxy" if account.proxy == "environment" else f"the proxy {account.proxy}"
    return f"{account.endpoint} through {proxy}"


def _secret_sources(value: object) -> Iterator[SecretSource]:
    """Yield every place of a secret in the settings."""
    if isinstance(value, SecretSource):
        yield value
    elif isinstance(value, msgspec.Struct):
        for each in msgspec.structs.astuple(value):
            yield from _secret_sources(each)
    elif isinstance(value, tuple | dict):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _secret_sources(each)


def _report_changed_file(record: dict[str, Any]) -> None:
    """Log that the file of the settings has changed since the run started, or is gone: the run keeps its settings."""
    file = record.get("file")
    if not isinstance(file, str):
        return
    with contextlib.suppress(OSError):
        if hashlib.sha256(read_regular_file(Path(file))).hexdigest() == record.get("file_sha256"):
            return
    log.warning(
        "settings_file_changed",
        file=file,
        advice=f"add --settings={shlex.quote(file)} to use the new ones",
    )


def _with_fleets_of(folder: Path, manifest: Manifest, given: Settings) -> Settings:
    """Return given settings with the accounts and fleets of a run; raise RunFolderError if the run has others.

    Accounts that the run excluded (``--account``) are dropped.
    """
    excluded = manifest.fleet.excluded_accounts
    given = msgspec.structs.replace(given, account=tuple(each for each in given.account if each.name not in excluded))
    if manifest.settings is None:
        recorded = {(account.name, account.endpoint, account.dialect) for account in manifest.accounts}
        same = recorded == {(account.name, account.endpoint, account.dialect) for account in given.account}
        changes = [] if same else ["the run has other accounts"]
        fleets = {account.name: account.fleet for account in given.account}
    else:
        before = settings_of(folder, _without_ca_files(manifest))
        changes = diff_settings(before, given, ignore=RUN_INDEPENDENT_KEYS)
        fleets = {account.name: account.fleet for account in before.account}
    if changes:
        raise RunFolderError(f"{folder}: cannot be resumed with these settings: {'; '.join(changes)}")
    accounts = tuple(msgspec.structs.replace(each, fleet=fleets.get(each.name)) for each in given.account)
    return msgspec.structs.replace(given, account=accounts)


def _without_ca_files(manifest: Manifest) -> Manifest:
    """Return the manifest without ``ca_file`` settings: a file may have moved, and given settings name the new one."""
    table = manifest.settings or {}
    accounts = table.get("account")
    if not isinstance(accounts, list):
        return manifest
    kept = [{key: each[key] for key in each if key != "ca_file"} for each in accounts if isinstance(each, dict)]
    return replace(manifest, settings={**table, "account": kept})


def settings_of(folder: Path, manifest: Manifest) -> Settings:
    """Return the settings that a run stores, to compare or describe them; raise RunFolderError if it has none."""
    if manifest.settings is None:
        raise RunFolderError(f"{folder}: its {MANIFEST} has no settings; give them with --settings")
    try:
        return parse_settings(manifest.settings, where=f"{folder}/{MANIFEST}: settings")
    except SettingsError as error:
        raise RunFolderError(f"{error}; give other settings with --settings") from error
