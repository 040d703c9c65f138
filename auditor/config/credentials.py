"""Access keys of accounts: as they are stored, as a command prints them, or from the vendor's library."""

import hashlib
import ipaddress
import json
import math
import subprocess
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.util import find_spec
from typing import Any
from urllib.parse import quote, urlsplit

import msgspec

from auditor.config.proxy import Proxy, resolve_proxy
from auditor.config.secrets import read_secret, run_command
from auditor.config.settings import Account, CredentialsSettings
from auditor.config.validation import check_credentials_uri
from auditor.errors import CredentialsError, SettingsError
from auditor.models import AccessKey, Secret
from auditor.text.extras import describe_extra

LIBRARY = "alibabacloud_credentials"

LIBRARY_TIMEOUT = 30.0
"""Seconds for a process that gets a key from the vendor's library, with its start."""

STS_HOST = "sts.aliyuncs.com"
"""Host of the security token service where none is configured (https://www.alibabacloud.com/help/en/ram)."""

METADATA_HOST = "100.100.100.200"
"""Address of the metadata service of an ECS instance, which no proxy reaches."""

MAX_SECONDS = 1e11
"""A larger expiration is in milliseconds."""


def read_access_key(account: Account) -> AccessKey:
    """Return the access key of an account, a new one if it is temporary. This may wait, for at most about a minute.

    Raises:
        SettingsError: a part of it is missing or cannot be read, or a package is not installed.
        CredentialsError: what issues it cannot be reached, or refuses.
    """
    if account.credentials is None:
        stored = CredentialsSettings(access_key_id=account.access_key_id, access_key_secret=account.access_key_secret)
        return _read_stored(stored, account.name, "")
    return _read(account.credentials, account, "credentials")


def quota_identity(account: Account, key: AccessKey | None) -> str:
    """Return what accounts and processes that share quotas have in common: a temporary key changes all the time."""
    table = account.credentials
    if key is not None and (table is None or table.type == "access_key"):
        return key.key_id
    if table is not None and table.role_arn is not None:
        return table.role_arn
    return hashlib.sha256(msgspec.json.encode(table)).hexdigest()


def describe_credentials(table: CredentialsSettings) -> str:
    """Return where an access key comes from, for messages."""
    if table.role_arn is not None:
        source = "" if table.source is None else f", assumed with {describe_credentials(table.source)}"
        return f"the role {table.role_arn}{source}"
    if table.command is not None:
        return f"the command {table.command[0]}"
    host = urlsplit(table.credentials_uri).netloc if isinstance(table.credentials_uri, str) else "credentials_uri"
    return {
        "ecs_ram_role": "the RAM role of this ECS instance",
        "credentials_uri": f"the service at {host}",
        "profile": f'the profile "{table.profile}" of aliyun',
        "default": "the default chain",
    }.get(table.type or "", "the stored access key")


def _read(table: CredentialsSettings, account: Account, key: str) -> AccessKey:
    where = f'account "{account.name}": {key}'
    if table.command is not None:
        return parse_key_document(run_command(table.command, where), f"{where}: what the command prints")
    if table.type in {"access_key", "sts"}:
        return _read_stored(table, account.name, f"{key}: ")
    if find_spec(LIBRARY) is None:
        package = LIBRARY.replace("_", "-")
        raise SettingsError(f"{where}: {table.type} needs {package}: {describe_extra('credentials')}")
    return _call_library(table, account, where)


def _read_stored(table: CredentialsSettings, account: str, prefix: str) -> AccessKey:
    if table.access_key_id is None or table.access_key_secret is None:
        raise SettingsError(f'account "{account}": {prefix}has no access_key_id and access_key_secret')
    key_id = read_secret(table.access_key_id, account=account, key=f"{prefix}access_key_id").reveal()
    secret = read_secret(table.access_key_secret, account=account, key=f"{prefix}access_key_secret")
    source = table.security_token
    token = None if source is None else read_secret(source, account=account, key=f"{prefix}security_token")
    return AccessKey(key_id, secret, token)


_MEMBERS = {
    "key_id": ("accesskeyid", "accesskey"),
    "secret": ("accesskeysecret", "secretaccesskey", "secretkey"),
    "token": ("securitytoken", "ststoken", "sessiontoken"),
    "expiration": ("expiration",),
}
"""Names of a key's parts without case and underscores, as aliyun, its security token service and Vault print them."""


def parse_key_document(content: bytes, where: str) -> AccessKey:
    """Return the access key in a JSON document; raise SettingsError, which never quotes it.

    The members have the names that aliyun, the security token service and Vault use, at the top or in ``Credentials``
    or ``data``. Without an expiration the key is used until the platform refuses it.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise SettingsError(f"{where} is not a JSON object; make it print one with the access key")
    members = _plain_names(document)
    for nested in ("credentials", "data"):
        if isinstance(members.get(nested), dict):
            members = _plain_names(members[nested])
    parts: dict[str, Any] = {
        part: next((members[name] for name in names if members.get(name)), None) for part, names in _MEMBERS.items()
    }
    return _check_parts(parts, where)


def _check_parts(parts: Mapping[str, Any], where: str) -> AccessKey:
    """Return the access key that has these parts; raise SettingsError if one is missing, or cannot be signed with."""
    for part, label in (("key_id", "AccessKeyId"), ("secret", "AccessKeySecret"), ("token", "SecurityToken")):
        text = parts[part]
        if text is None and part != "token":
            raise SettingsError(f"{where} has no {label}")
        if text is not None and not (isinstance(text, str) and text.isprintable()):
            raise SettingsError(f"{where} has a {label} that is not a printable text")
    token = None if parts["token"] is None else Secret(parts["token"])
    return AccessKey(parts["key_id"], Secret(parts["secret"]), token, _parse_expiration(parts["expiration"]))


def _plain_names(document: Mapping[str, Any]) -> dict[str, Any]:
    return {name.replace("_", "").lower(): value for name, value in document.items()}


def _parse_expiration(value: object) -> float | None:
    """Return seconds since 1970 of an ISO 8601 text, in UTC without a zone, or of seconds or milliseconds.

    What cannot be read as a time is None.
    """
    try:
        if isinstance(value, int | float):
            seconds = value / 1000 if value > MAX_SECONDS else float(value)
            return seconds if math.isfinite(seconds) else None
        moment = datetime.fromisoformat(str(value))
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None


def _call_library(table: CredentialsSettings, account: Account, where: str) -> AccessKey:
    """Return a key from the vendor's library, which runs in a process of its own; see ``vendor_credentials``."""
    request = {"credentials": _library_table(table, account, where), "proxies": _proxies(table, account, where)}
    command = (sys.executable, "-P", "-m", "auditor.config.vendor_credentials")
    try:
        process = subprocess.run(  # noqa: S603  our own module
            command,
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the library logs answers, which contain keys
            timeout=LIBRARY_TIMEOUT,
            check=False,
        )
        answer = json.loads(process.stdout)
    except subprocess.TimeoutExpired:
        answer = {"error": f"no answer within {LIBRARY_TIMEOUT:g} s", "refused": False}
    except (OSError, ValueError):
        answer = {"error": "the process for it cannot be started, or fails", "refused": False}
    if "error" in answer:
        sentence = f"{where}: {describe_credentials(table)} gives no access key: {answer['error']}"
        raise CredentialsError(sentence, refused=answer["refused"])
    parts = {part: answer[part] or None for part in ("key_id", "secret", "token")}
    where = f"{where}: the access key of {describe_credentials(table)}"
    return _check_parts(parts | {"expiration": answer["expires_at"]}, where)


def _library_table(table: CredentialsSettings, account: Account, where: str) -> dict[str, Any]:
    """Return credentials for the library, with secrets in place of where they are stored."""
    if table.command is not None or table.type in {"access_key", "sts"}:
        key = _read(table, account, where.partition(": ")[2])
        token = None if key.token is None else key.token.reveal()
        return {"type": "static", "key_id": key.key_id, "secret": key.secret.reveal(), "token": token}
    resolved: dict[str, Any] = msgspec.to_builtins(table)
    if table.source is not None:
        resolved["source"] = _library_table(table.source, account, f"{where}: source")
    if table.credentials_uri is not None:
        resolved["credentials_uri"] = _read_uri(table, account, where)
    return resolved


def _read_uri(table: CredentialsSettings, account: Account, where: str) -> str:
    """Return the address of a service that returns keys, with its port: the library requires one."""
    at = f"{where}: credentials_uri"
    uri = read_secret(table.credentials_uri or "", account=account.name, key=at.partition(": ")[2]).reveal()
    check_credentials_uri(uri, at)
    parts = urlsplit(uri)
    netloc = parts.netloc if parts.port else f"{parts.netloc}:{443 if parts.scheme == 'https' else 80}"
    return parts._replace(netloc=netloc).geturl()


def _proxies(table: CredentialsSettings, account: Account, where: str) -> dict[str, str]:
    """Return the proxies of HTTP and HTTPS requests for a key: those of the account, and none for local services."""
    service = f"https://{table.sts_endpoint or STS_HOST}/"
    found = {"https": resolve_proxy(account, service)}
    first = table
    while first.source is not None:
        first = first.source
    if first.credentials_uri is not None:
        uri = _read_uri(first, account, where)
        found[urlsplit(uri).scheme] = None if _is_local(urlsplit(uri).hostname or "") else resolve_proxy(account, uri)
    return {scheme: _proxy_url(proxy) for scheme, proxy in found.items() if proxy is not None}


def _is_local(host: str) -> bool:
    """Return whether a host is this machine, or the metadata service of its cloud."""
    if host in {"localhost", METADATA_HOST}:
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_link_local


def _proxy_url(proxy: Proxy) -> str:
    if proxy.user is None or proxy.password is None:
        return proxy.url
    user, password = (quote(each.reveal(), safe="") for each in (proxy.user, proxy.password))
    return f"http://{user}:{password}@{proxy.address}"
