"""Rules of the settings that types cannot say: of accounts, of which devices are asked, and of what follows a run."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from auditor.config.proxy import check_proxy
from auditor.config.settings import Account, FleetSource, NotifySettings, SecretSource, Settings, WhichDevices, part_of
from auditor.errors import SettingsError, UsageError
from auditor.text.durations import seconds_of

SOURCES = '{ env = "NAME" }, { file = "/path" } or { command = ["PROGRAM", …] }'
"""Where a secret may lie, as errors say it."""


def place_of(raw: object, number: int) -> str:
    """How an account is called in errors: by its number from 1, and its name if it has one that can be printed."""
    name = raw.get("name") if isinstance(raw, Mapping) else None
    return f'account {number} ("{name}")' if isinstance(name, str) and name.isprintable() else f"account {number}"


def check_accounts(settings: Settings, where: str) -> None:
    """Rules of accounts, each and all together.

    Raises:
        SettingsError: the first that is broken.
    """
    names = [account.name for account in settings.account]
    places = [f"{where}: {place_of({'name': each.name}, number)}" for number, each in enumerate(settings.account, 1)]
    for at, account in zip(places, settings.account, strict=True):
        if not account.name or not account.name.isprintable() or names.count(account.name) > 1:
            raise SettingsError(f"{at}: name: give every account a name of its own, of letters that can be printed")
        _check_account(account, at)
    refuse_one_quota((at, each, each.access_key_id) for at, each in zip(places, settings.account, strict=True))


def refuse_one_quota(accounts: Iterable[tuple[str, Account, object]]) -> None:
    """Refuses accounts that would count on one quota without knowing of each other.

    Args:
        accounts: each with how errors call it, and with its access key id, or where that lies.

    Raises:
        SettingsError: two have the same endpoint and key.
    """
    quotas: dict[tuple[object, ...], str] = {}
    for at, account, key_id in accounts:
        if account.per_second == "unlimited":
            continue
        other = quotas.setdefault((*account.asked_at, key_id), account.name)
        if other != account.name:
            raise SettingsError(
                f'{at}: has the endpoint and key of account "{other}", so both would count on one quota; '
                "make them one account with one fleet"
            )


def check_source(source: SecretSource, at: str) -> None:
    """Refuses a place of a secret that names none, or two.

    Raises:
        SettingsError: it does.
    """
    if sum(each is not None for each in (source.env, source.file, source.command)) != 1:
        raise SettingsError(f"{at}: give one of {SOURCES}")
    if source.command is not None and not (source.command and source.command[0]):
        raise SettingsError(f"{at}: command: is empty; give a program and its arguments")


def _check_account(account: Account, at: str) -> None:
    try:
        parts = urlsplit(account.endpoint)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, a bracket without its other
        good = False
    # An endpoint is never quoted: it may hold a password.
    if not good or re.search(r"[^!-~]", account.endpoint):
        raise SettingsError(f"{at}: endpoint: is not an address such as https://HOST:PORT/")
    if "@" in parts.netloc or parts.path not in {"", "/"} or re.search(r"[?#]", account.endpoint):
        raise SettingsError(f"{at}: endpoint: leave out everything but https://HOST:PORT/")
    _check_quotas(account, at)
    if account.dialect == "alibaba" and not account.region_id:
        raise SettingsError(f'{at}: region_id: the dialect alibaba needs one, such as region_id = "cn-shanghai"')
    if account.fleet is not None:
        _check_fleet(account.fleet, f"{at}: fleet")
    if account.ca_file is not None and not Path(account.ca_file).is_file():
        raise SettingsError(f"{at}: ca_file: {account.ca_file} is not a file")
    if isinstance(account.proxy, str):
        check_proxy(account.proxy, f"{at}: proxy")


def _check_quotas(account: Account, at: str) -> None:
    if not isinstance(account.per_second, str) and not 0.001 <= account.per_second <= 1_000_000:
        raise SettingsError(f'{at}: per_second: give calls a second from 0.001 to 1,000,000, or "unlimited" or "auto"')
    if account.per_second == "auto" and account.share != 1:
        raise SettingsError(
            f'{at}: share: a part of a quota needs one that is known; leave it out, or per_second = "auto"'
        )
    if not 0 < account.share <= 1:
        raise SettingsError(f"{at}: share: give a part above 0 and up to 1")
    for operation, quota in msgspec.to_builtins(account.quotas).items():
        if quota is not None and not 0.001 <= quota <= 1_000_000:
            raise SettingsError(f"{at}: quotas: {operation}: give calls a second from 0.001 to 1,000,000")


def _check_fleet(fleet: FleetSource, at: str) -> None:
    if (fleet.file is None) == (fleet.products is None):
        raise SettingsError(f'{at}: give one of file = "fleet.csv" and products = "all" or ["k1…"]')
    if fleet.file is not None:
        if fleet != FleetSource(file=fleet.file):
            raise SettingsError(f"{at}: include, exclude and ask_never_activated go with products, not with a file")
        return
    keys = () if fleet.products == "all" else fleet.products or ("",)
    if not all(keys) or len(set(keys)) < len(keys) or fleet.products == ():
        raise SettingsError(f'{at}: products: give "all", or product keys, each of them once')
    for key, patterns in (("include", fleet.include), ("exclude", fleet.exclude)):
        if not all((*patterns.product_key, *patterns.device_name)):
            raise SettingsError(f"{at}: {key}: a pattern is empty; leave it out, or give one such as lamp_*")


def check_which_devices(settings: WhichDevices, where: str) -> None:
    """Rules of what says which devices are asked.

    Raises:
        SettingsError: the first that is broken.
    """
    for key, least, most in (("calls", 1, 10**12), ("sample", 1, 10**12), ("seed", 0, 2**63 - 1)):
        given = getattr(settings, key)
        if given is not None and not least <= given <= most:
            raise SettingsError(f"{where}: {key}: give a whole number from {least} up")
    if settings.since == "":
        raise SettingsError(f'{where}: since: is empty; give "last", a run folder, or "none"')
    if settings.max_age is not None:
        try:
            seconds_of(settings.max_age)
        except UsageError:
            raise SettingsError(f'{where}: max_age: is no length of time; give one such as "30d" or "36h"') from None
    for key in ("recheck", "guaranteed", "precision"):
        if (part := getattr(settings, key)) is not None and not _is_part(part):
            raise SettingsError(f'{where}: {key}: {part!r} is no percentage from 0% to 100%; give one such as "1%"')
    _check_sample(settings, where)


def _check_sample(settings: WhichDevices, where: str) -> None:
    if settings.precision is not None and not 0 < part_of(settings.precision) < 0.5:
        raise SettingsError(f'{where}: precision: give one above 0% and below 50%, such as "1%"')
    if settings.sample is not None and settings.precision is not None:
        raise SettingsError(f"{where}: precision: there is a sample, which says how many devices; give one of both")
    if settings.samples and (settings.calls is not None or settings.since not in {None, "none"}):
        key = "precision" if settings.sample is None else "sample"
        raise SettingsError(f"{where}: {key}: is drawn anew, from the whole fleet; leave since and calls out")


def _is_part(text: str) -> bool:
    return re.fullmatch(r"\d+(\.\d+)?%", text, re.ASCII) is not None and float(text[:-1]) <= 100


def check_following(settings: Settings, where: str) -> None:
    """Rules of [policy], [report] and [notify]. Whether files are there, and can be written, shows before a run.

    Raises:
        SettingsError: the first that is broken.
    """
    if settings.policy is not None and not settings.policy.file:
        raise SettingsError(f'{where}: policy: file: is empty; give a file of rules such as "rules.toml"')
    for key in ("html", "excel", "metrics"):
        if getattr(settings.report, key) == "":
            raise SettingsError(f"{where}: report: {key}: is empty; give a path, or leave it out")
    if settings.notify is not None:
        _check_notify(settings.notify, f"{where}: notify")


def _check_notify(notify: NotifySettings, at: str) -> None:
    if isinstance(notify.webhook, SecretSource):
        check_source(notify.webhook, f"{at}: webhook")
    elif notify.webhook is not None:
        check_address(notify.webhook, f"{at}: webhook")
    if notify.secret is not None:
        check_source(notify.secret, f"{at}: secret")


def check_address(address: str, at: str) -> None:
    """Refuses what is no address to post to; it is never quoted, for it may hold a token.

    Raises:
        SettingsError: it is none.
    """
    try:
        parts = urlsplit(address)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # as in an endpoint
        good = False
    if not good or re.search(r"[^!-~]", address):
        raise SettingsError(f"{at}: is not an address such as https://HOST/PATH")
