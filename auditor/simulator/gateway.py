"""The simulated platform's gateway: reads a request's parameters and checks them in the order of the real one.

Sources: Tuya's and Alibaba's pages on common parameters and on signatures. The codes for a missing parameter and
for a repeated one are not documented by Tuya; these are named the way Alibaba's gateway names them.

What several operations check of their parameters, and how they refuse them.

Sources: Tuya's and Alibaba's pages of the operations and of error codes. How too many devices in one request are
refused stands on neither; here it is the documented code for a parameter that is not valid.
"""

import hmac
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from urllib.parse import unquote_plus

from auditor.client.operations import API_VERSION
from auditor.client.signing import percent_encode, signature
from auditor.models import Secret
from auditor.simulator.quotas import SimulatedAccount
from auditor.simulator.registry import Registry
from auditor.simulator.responses import Refused
from auditor.simulator.world import SimulatedDevice, World

MOST_SECONDS_OFF = 15 * 60
"""How far a request's Timestamp may be from the server's clock."""


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


# Bounds the memory of nonces at about 100 MB however fast a client is.
_NONCES_IN_A_GENERATION = 1 << 19


# Most names and values come again in every request of a run, so escaping is looked up: it would be half the cost.
_escaped = lru_cache(maxsize=4096)(percent_encode)


_unescaped = lru_cache(maxsize=4096)(unquote_plus)


def read_parameters(text: str, into: dict[str, str]) -> None:
    """Adds the parameters of a query string or a form to ``into``; raises Refused if one comes twice."""
    for piece in text.split("&"):
        if not piece:
            continue
        name, _, value = piece.partition("=")
        if "%" in name or "+" in name:
            name = _unescaped(name)
        if "%" in value or "+" in value:
            value = _unescaped(value)
        if name in into:
            raise Refused("InvalidParameter.Repeated", f"The parameter {name} is given more than once.", 400)
        into[name] = value


def answer_format(parameters: Mapping[str, str]) -> str:
    """``JSON`` or ``XML``; the documented default is XML, which a request in an unknown format gets too."""
    wanted = parameters.get("Format", "").upper()
    return wanted if wanted in _FORMATS else "XML"


class Gateway:
    """Knows the accounts and the nonces they have used."""

    def __init__(self, accounts: Sequence[SimulatedAccount]) -> None:
        self._accounts = {account.access_key_id: account for account in accounts}
        self._revoked: set[str] = set()
        self._nonces = NonceMemory()

    def revoke(self, access_key_id: str) -> None:
        """Refuses a key from now on, as a platform does whose user has disabled it; raises KeyError if unknown."""
        self._revoked.add(self._accounts[access_key_id].access_key_id)

    def check(self, method: str, parameters: Mapping[str, str], now: float) -> SimulatedAccount:
        """Whose request this is; raises Refused with the first thing that is wrong with it.

        Args:
            method: ``GET`` or ``POST``.
            parameters: all parameters of the query and the form, decoded.
            now: the server's time in seconds since 1970.
        """
        for name in _REQUIRED:
            if not parameters.get(name):
                raise Refused(f"Missing{name}", f"{name} is mandatory for this action.", 400)
        account = self._accounts.get(parameters["AccessKeyId"])
        if account is None:
            raise Refused("InvalidAccessKeyId.NotFound", "Specified access key is not found.", 404)
        if account.access_key_id in self._revoked:
            raise Refused("InvalidAccessKeyId.Inactive", "Specified access key is disabled.", 403)
        _check_versions(parameters)
        _check_timestamp(parameters["Timestamp"], now)
        _check_signature(method, parameters, account.secret)
        if not self._nonces.is_new(account.access_key_id, parameters["SignatureNonce"], now):
            raise Refused("SignatureNonceUsed", "Specified signature nonce was used already.", 400)
        return account


def _check_versions(parameters: Mapping[str, str]) -> None:
    if parameters["SignatureMethod"] != "HMAC-SHA1":
        raise Refused("InvalidSignatureMethod", "Specified signature method is not supported.", 400)
    if parameters["SignatureVersion"] != "1.0":
        raise Refused("InvalidSignatureVersion", "Specified signature version is not supported.", 400)
    if parameters["Version"] != API_VERSION:
        raise Refused("InvalidVersion", "Specified parameter Version is not valid.", 400)
    if parameters.get("Format", "XML").upper() not in _FORMATS:
        raise Refused("InvalidFormat", "Specified parameter Format is not valid.", 400)


def _check_timestamp(text: str, now: float) -> None:
    stamp = _seconds(text)
    if stamp is None:
        raise Refused("InvalidTimeStamp.Format", "Specified time stamp is not well formatted.", 400)
    if abs(stamp - now) > MOST_SECONDS_OFF:
        raise Refused("InvalidTimeStamp.Expired", "Specified time stamp or date value is expired.", 400)


@lru_cache(maxsize=1024)
def _seconds(timestamp: str) -> float | None:
    """Seconds since 1970 of ``YYYY-MM-DDThh:mm:ssZ``, or None. Kept, for a client stamps many requests alike."""
    if _TIMESTAMP.fullmatch(timestamp) is None:
        return None
    try:
        return datetime.fromisoformat(timestamp.removesuffix("Z")).replace(tzinfo=UTC).timestamp()
    except ValueError:
        return None


def text_under_signature(method: str, parameters: Mapping[str, str]) -> str:
    """What ``platform.signing`` signs for all ``parameters`` but Signature, made ten times as fast.

    A canonical query holds nothing to escape but ``%``, ``=`` and ``&``, so escaping it is three replacements.
    """
    query = "&".join(
        f"{_escaped(name)}={_escaped(parameters[name])}" for name in sorted(parameters) if name != "Signature"
    )
    return f"{method}&%2F&" + query.replace("%", "%25").replace("=", "%3D").replace("&", "%26")


def _check_signature(method: str, parameters: Mapping[str, str], secret: Secret) -> None:
    text = text_under_signature(method, parameters)
    if not hmac.compare_digest(signature(secret, text).encode(), parameters["Signature"].encode()):
        # The real gateway quotes its text too: the vendor's SDK reads it to tell a wrong secret from a wrong text.
        message = f"Specified signature is not matched with our calculation. server string to sign is:{text}"
        raise Refused("SignatureDoesNotMatch", message, 400)


class NonceMemory:
    """Remembers nonces for 15 to 30 minutes in two generations, each of bounded size.

    What is kept is a 64-bit hash: of a million nonces, one is refused wrongly with a chance of 1 in 30 million.
    """

    def __init__(self, most: int = _NONCES_IN_A_GENERATION) -> None:
        self._most = most
        self._young: set[int] = set()
        self._old: set[int] = set()
        self._born = 0.0

    def is_new(self, access_key_id: str, nonce: str, now: float) -> bool:
        """Whether the key has not used the nonce before; from now on it has."""
        if now - self._born > MOST_SECONDS_OFF or len(self._young) >= self._most:
            # After half an hour without requests both generations are out of date.
            self._old = self._young if now - self._born <= 2 * MOST_SECONDS_OFF else set()
            self._young, self._born = set(), now
        mark = hash((access_key_id, nonce))
        if mark in self._young or mark in self._old:
            return False
        self._young.add(mark)
        return True


Parameters = Mapping[str, str]
"""All parameters of a request, decoded."""


_WHOLE_NUMBER = re.compile(r"\d{1,9}", re.ASCII)


_DEVICE_NAME = re.compile(r"[A-Za-z0-9\-_@.:]{4,32}")


_PRODUCT_KEY = re.compile(r"[A-Za-z0-9]{1,64}")


_PLACE_IN_LIST = re.compile(r"[1-9]\d{0,8}", re.ASCII)


def page_number(parameters: Parameters, name: str, most: int | None = None) -> int:
    """A number or a size of pages, 1 to ``most``; raises Refused."""
    text = parameters.get(name, "")
    number = int(text) if _WHOLE_NUMBER.fullmatch(text) else 0
    if number < 1 or (most is not None and number > most):
        raise invalid_page(name)
    return number


def invalid_page(name: str) -> Refused:
    """The refusal of a paging parameter."""
    return Refused("iot.common.InvalidPageParams", f"The paging parameter {name} is invalid.")


def product_of(parameters: Parameters, world: World) -> int:
    """The number of the product that a request is about; raises Refused."""
    product_key = parameters.get("ProductKey")
    if not product_key:
        raise Refused("iot.prod.NullProductKey", "The ProductKey is empty.")
    if _PRODUCT_KEY.fullmatch(product_key) is None:
        raise Refused("iot.prod.InvalidFormattedProductkey", "The format of the ProductKey is invalid.")
    product = world.product_number(product_key)
    if product is None:
        raise Refused("iot.prod.NotExistedProduct", "The specified product does not exist.")
    return product


def device_named(parameters: Parameters, registry: Registry) -> SimulatedDevice:
    """The device that ``ProductKey`` and ``DeviceName`` name; raises Refused."""
    product_of(parameters, registry.world)
    name = _well_formed(parameters.get("DeviceName"))
    device = registry.find(parameters["ProductKey"], name)
    if device is None:
        raise Refused("iot.device.NotExistedDevice", "The specified device does not exist.")
    return device


def devices_named(parameters: Parameters, registry: Registry, most: int) -> list[SimulatedDevice]:
    """The devices that ``ProductKey`` and ``DeviceName.N`` name; who does not exist is left out. Raises Refused."""
    product_of(parameters, registry.world)
    names = listed(parameters, "DeviceName", most) or [_well_formed(None)]
    found = [registry.find(parameters["ProductKey"], _well_formed(name)) for name in names]
    return [device for device in found if device is not None]


def listed(parameters: Parameters, name: str, most: int) -> list[str]:
    """The values of ``NAME.1``, ``NAME.2`` and so on in that order, each once; raises Refused if they are too many."""
    numbered: list[tuple[int, str]] = []
    for parameter, value in parameters.items():
        stem, _, number = parameter.rpartition(".")
        if stem == name and _PLACE_IN_LIST.fullmatch(number):
            numbered.append((int(number), value))
    if len(numbered) > most:
        raise Refused("iot.system.IllegalRequest", f"The parameter {name} holds more than {most} values.")
    return list(dict.fromkeys(value for _, value in sorted(numbered)))


def _well_formed(device_name: str | None) -> str:
    if not device_name:
        raise Refused("iot.device.NullDeviceName", "The DeviceName is empty.")
    if _DEVICE_NAME.fullmatch(device_name) is None:
        raise Refused("iot.device.InvalidFormattedDeviceName", "The format of the DeviceName is invalid.")
    return device_name
