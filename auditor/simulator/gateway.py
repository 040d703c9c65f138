"""Parameters of a request: the checks of the platform's gateway, in its order, and those that operations share.

Sources: Tuya's and Alibaba's pages on common parameters, signatures, operations and error codes. Tuya documents no
codes for missing and repeated parameters; these are the ones of Alibaba's gateway. Neither documents a code for too
many devices in one request; here it is the one for an invalid parameter.
"""

import hmac
import re
import secrets
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import unquote_plus

from auditor.client.operations import API_VERSION
from auditor.client.signing import percent_encode, signature
from auditor.models import AccessKey, Secret
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import Registry
from auditor.simulator.responses import RequestRejected
from auditor.simulator.world import SimulatedDevice, World

Parameters = Mapping[str, str]
"""All parameters of a request, decoded."""

MAX_CLOCK_SKEW = 15 * 60
"""Seconds that a request's Timestamp may differ from the server's clock."""

_REQUIRED = (
    "Action",
    "Version",
    "AccessKeyId",
    "SignatureMethod",
    "SignatureVersion",
    "SignatureNonce",
    "Timestamp",
    "Signature",
)

_FORMATS = ("JSON", "XML")
_TIMESTAMP = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)
_WHOLE_NUMBER = re.compile(r"\d{1,9}", re.ASCII)
_DEVICE_NAME = re.compile(r"[A-Za-z0-9\-_@.:]{4,32}")
_PRODUCT_KEY = re.compile(r"[A-Za-z0-9]{1,64}")
_LIST_INDEX = re.compile(r"[1-9]\d{0,8}", re.ASCII)

# Limits the memory of nonces to about 100 MB, however fast a client is.
_MAX_NONCES = 1 << 19

# Nearly all names and values recur in every request of a run. Without the caches escaping would be half the cost.
_escaped = lru_cache(maxsize=4096)(percent_encode)
_unescaped = lru_cache(maxsize=4096)(unquote_plus)


def read_parameters(text: str, into: dict[str, str]) -> None:
    """Add the parameters of a query string or a form to ``into``; raise RequestRejected if one is repeated."""
    for piece in text.split("&"):
        if not piece:
            continue
        name, _, value = piece.partition("=")
        if "%" in name or "+" in name:
            name = _unescaped(name)
        if "%" in value or "+" in value:
            value = _unescaped(value)
        if name in into:
            raise RequestRejected("InvalidParameter.Repeated", f"The parameter {name} is given more than once.", 400)
        into[name] = value


def response_format(parameters: Mapping[str, str]) -> str:
    """Return ``JSON`` or ``XML``. XML is the documented default, and used for unknown formats too."""
    requested = parameters.get("Format", "").upper()
    return requested if requested in _FORMATS else "XML"


class Gateway:
    """The accounts, and the nonces that they have used."""

    def __init__(self, accounts: Sequence[SimulatedAccount]) -> None:
        self._accounts = {account.access_key_id: account for account in accounts}
        self._revoked: set[str] = set()
        self._temporary: dict[str, tuple[SimulatedAccount, AccessKey]] = {}
        self._nonces = NonceMemory()

    def revoke(self, access_key_id: str) -> None:
        """Reject a key from now on, as if its user had disabled it; raise KeyError if it is unknown."""
        self._revoked.add(self._accounts[access_key_id].access_key_id)

    def issue_key(self, access_key_id: str, expires_at: float) -> AccessKey:
        """Return a temporary key of an account, which ends at a time of the server's clock; KeyError if unknown."""
        account = self._accounts[access_key_id]
        secret, token = (Secret(secrets.token_urlsafe(size)) for size in (24, 450))
        key = AccessKey(f"STS.{secrets.token_hex(12)}", secret, token, expires_at)
        self._temporary[key.key_id] = account, key
        return key

    def check(self, method: str, parameters: Mapping[str, str], now: float) -> SimulatedAccount:
        """Return the account of a request; raise RequestRejected for its first error.

        Args:
            method: ``GET`` or ``POST``.
            parameters: all parameters of the query and the form, decoded.
            now: the server's time in seconds since 1970.
        """
        for name in _REQUIRED:
            if not parameters.get(name):
                raise RequestRejected(f"Missing{name}", f"{name} is mandatory for this action.", 400)
        account, secret = self._find_key(parameters, now)
        if account.access_key_id in self._revoked:
            raise RequestRejected("InvalidAccessKeyId.Inactive", "Specified access key is disabled.", 403)
        _check_common_parameters(parameters)
        _check_timestamp(parameters["Timestamp"], now)
        _check_signature(method, parameters, secret)
        if not self._nonces.is_new(account.access_key_id, parameters["SignatureNonce"], now):
            raise RequestRejected("SignatureNonceUsed", "Specified signature nonce was used already.", 400)
        if parameters["Action"] in account.denied:
            raise RequestRejected("NoPermission", "You are not authorized to do this action.", 403)
        return account

    def _find_key(self, parameters: Mapping[str, str], now: float) -> tuple[SimulatedAccount, Secret]:
        """Return the account and the secret of a request's key; raise RequestRejected unless its token is valid."""
        key_id, token = parameters["AccessKeyId"], parameters.get("SecurityToken")
        if key_id in self._accounts:
            if token is not None:
                raise RequestRejected("InvalidSecurityToken.MismatchWithAccessKey", "The token is not the key's.", 400)
            return self._accounts[key_id], self._accounts[key_id].secret
        if key_id not in self._temporary:
            raise RequestRejected("InvalidAccessKeyId.NotFound", "Specified access key is not found.", 404)
        account, key = self._temporary[key_id]
        if not token:
            raise RequestRejected("MissingSecurityToken", "SecurityToken is mandatory for this action.", 400)
        if key.token is None or token != key.token.reveal():
            raise RequestRejected("InvalidSecurityToken.Malformed", "Specified SecurityToken is malformed.", 400)
        if key.expires_at is not None and now >= key.expires_at:
            raise RequestRejected("InvalidSecurityToken.Expired", "Specified SecurityToken is expired.", 400)
        return account, key.secret


def _check_common_parameters(parameters: Mapping[str, str]) -> None:
    if parameters["SignatureMethod"] != "HMAC-SHA1":
        raise RequestRejected("InvalidSignatureMethod", "Specified signature method is not supported.", 400)
    if parameters["SignatureVersion"] != "1.0":
        raise RequestRejected("InvalidSignatureVersion", "Specified signature version is not supported.", 400)
    if parameters["Version"] != API_VERSION:
        raise RequestRejected("InvalidVersion", "Specified parameter Version is not valid.", 400)
    if parameters.get("Format", "XML").upper() not in _FORMATS:
        raise RequestRejected("InvalidFormat", "Specified parameter Format is not valid.", 400)


def _check_timestamp(text: str, now: float) -> None:
    stamp = _parse_timestamp(text)
    if stamp is None:
        raise RequestRejected("InvalidTimeStamp.Format", "Specified time stamp is not well formatted.", 400)
    if abs(stamp - now) > MAX_CLOCK_SKEW:
        raise RequestRejected("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.", 400)


@lru_cache(maxsize=1024)
def _parse_timestamp(timestamp: str) -> float | None:
    """Return the seconds since 1970 of ``YYYY-MM-DDThh:mm:ssZ``, or None. Cached: many requests have the same one."""
    if _TIMESTAMP.fullmatch(timestamp) is None:
        return None
    try:
        return datetime.fromisoformat(timestamp.removesuffix("Z")).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def signed_text(method: str, parameters: Mapping[str, str]) -> str:
    """Return the text that is signed for all ``parameters`` except Signature, without the client's code.

    A canonical query has nothing to escape but ``%``, ``=`` and ``&``, so that three replacements escape it.
    """
    names = sorted(parameters.keys() - {"Signature"})
    query = "&".join([f"{_escaped(name)}={_escaped(parameters[name])}" for name in names])
    return f"{method}&%2F&" + query.replace("%", "%25").replace("=", "%3D").replace("&", "%26")


def _check_signature(method: str, parameters: Mapping[str, str], secret: Secret) -> None:
    text = signed_text(method, parameters)
    if not hmac.compare_digest(signature(secret, text).encode(), parameters["Signature"].encode()):
        # The real gateway quotes its text too: with it the vendor's SDK distinguishes a wrong secret from a wrong text.
        message = f"Specified signature is not matched with our calculation. server string to sign is:{text}"
        raise RequestRejected("SignatureDoesNotMatch", message, 400)


class NonceMemory:
    """Nonces of the last 15 to 30 minutes, in two generations of limited size.

    Only 64-bit hashes are stored: with a million nonces, a new one is rejected with a probability of 1 in 30 million.
    """

    def __init__(self, max_nonces: int = _MAX_NONCES) -> None:
        self._max_nonces = max_nonces
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._born = 0.0

    def is_new(self, access_key_id: str, nonce: str, now: float) -> bool:
        """Record a nonce of a key; return whether the key has not used it before."""
        if now - self._born > MAX_CLOCK_SKEW or len(self._young) >= self._max_nonces:
            # After half an hour without requests both generations are outdated.
            self._old = self._young if now - self._born <= 2 * MAX_CLOCK_SKEW else set()
            self._young, self._born = set(), now
        digest = hash((access_key_id, nonce))
        if digest in self._young or digest in self._old:
            return False
        self._young.add(digest)
        return True


def read_paging_parameter(parameters: Parameters, name: str, maximum: int | None = None) -> int:
    """Return a page number or page size, 1 to ``maximum``; raise RequestRejected if it is missing or out of range."""
    text = parameters.get(name, "")
    number = int(text) if _WHOLE_NUMBER.fullmatch(text) else 0
    if number < 1 or (maximum is not None and number > maximum):
        raise invalid_page(name)
    return number


def invalid_page(name: str) -> RequestRejected:
    """Return the error for a paging parameter."""
    return RequestRejected("iot.common.InvalidPageParams", f"The paging parameter {name} is invalid.")


def find_product(parameters: Parameters, world: World) -> int:
    """Return the number of the product of a request; raise RequestRejected if it is missing, malformed or unknown."""
    product_key = parameters.get("ProductKey")
    if not product_key:
        raise RequestRejected("iot.prod.NullProductKey", "The ProductKey is empty.")
    if _PRODUCT_KEY.fullmatch(product_key) is None:
        raise RequestRejected("iot.prod.InvalidFormattedProductkey", "The format of the ProductKey is invalid.")
    product = world.product_number(product_key)
    if product is None:
        raise RequestRejected("iot.prod.NotExistedProduct", "The specified product does not exist.")
    return product


def find_device(parameters: Parameters, registry: Registry) -> SimulatedDevice:
    """Return the device of ``ProductKey`` and ``DeviceName``.

    Raise RequestRejected if one of them is missing, malformed or unknown.
    """
    find_product(parameters, registry.world)
    name = _check_device_name(parameters.get("DeviceName"))
    device = registry.find(parameters["ProductKey"], name)
    if device is None:
        raise RequestRejected("iot.device.NotExistedDevice", "The specified device does not exist.")
    return device


def find_devices(parameters: Parameters, registry: Registry, limit: int) -> list[SimulatedDevice]:
    """Return the existing devices of ``ProductKey`` and ``DeviceName.N``.

    Raise RequestRejected if one of them is missing or malformed, or the product is unknown.
    """
    find_product(parameters, registry.world)
    names = numbered_values(parameters, "DeviceName", limit) or [_check_device_name(None)]
    found = [registry.find(parameters["ProductKey"], _check_device_name(name)) for name in names]
    return [device for device in found if device is not None]


def numbered_values(parameters: Parameters, name: str, limit: int) -> list[str]:
    """Return the values of ``NAME.1``, ``NAME.2`` and so on, each once; raise RequestRejected above ``limit``."""
    numbered: list[tuple[int, str]] = []
    for parameter, value in parameters.items():
        stem, _, number = parameter.rpartition(".")
        if stem == name and _LIST_INDEX.fullmatch(number):
            numbered.append((int(number), value))
    if len(numbered) > limit:
        raise RequestRejected("iot.system.IllegalRequest", f"The parameter {name} holds more than {limit} values.")
    return list(dict.fromkeys(value for _, value in sorted(numbered)))


def _check_device_name(device_name: str | None) -> str:
    if not device_name:
        raise RequestRejected("iot.device.NullDeviceName", "The DeviceName is empty.")
    if _DEVICE_NAME.fullmatch(device_name) is None:
        raise RequestRejected("iot.device.InvalidFormattedDeviceName", "The format of the DeviceName is invalid.")
    return device_name
