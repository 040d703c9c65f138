"""The proxy that an account's platform is reached through: its address, and the password that it may want."""

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies_environment, proxy_bypass

from auditor.config.secrets import read_secret
from auditor.config.settings import Account, SecretSource
from auditor.errors import SettingsError
from auditor.models import Secret

ENVIRONMENT = "environment"
"""What ``proxy`` says where the environment's variables count."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is spoken to by plain HTTP.

    Attributes:
        url: ``http://HOST:PORT``, without user and password.
        user, password: what it wants to know, if anything.
    """

    url: str
    user: Secret | None = None
    password: Secret | None = None

    @property
    def place(self) -> str:
        """``HOST:PORT``, as errors name it."""
        return self.url.removeprefix("http://")

    @property
    def authorization(self) -> Secret | None:
        """What ``Proxy-Authorization`` says, see https://www.rfc-editor.org/rfc/rfc7617."""
        if self.user is None or self.password is None:
            return None
        both = f"{self.user.reveal()}:{self.password.reveal()}".encode()
        return Secret(f"Basic {base64.b64encode(both).decode()}")


def proxy_of(account: Account) -> Proxy | None:
    """The proxy of an account, read from where the settings say that it lies; None if it has none.

    Raises:
        SettingsError: it is not there, or is no address of a proxy.
    """
    at = f'account "{account.name}": proxy'
    if account.proxy is None:
        return None
    if isinstance(account.proxy, SecretSource):
        return _read(read_secret(account.proxy, account=account.name, key="proxy").reveal(), at)
    if account.proxy != ENVIRONMENT:
        return _read(account.proxy, at)
    scheme = urlsplit(account.endpoint).scheme
    host, port = account.asked_at
    address = getproxies_environment().get(scheme, "")
    if not address or proxy_bypass(f"{host}:{port}"):
        return None
    return _read(address if "://" in address else f"http://{address}", f"{at}: {scheme.upper()}_PROXY")


def check_proxy(proxy: str, at: str) -> None:
    """Refuses what is neither ``"environment"`` nor the address of a proxy that may stand in the settings.

    Raises:
        SettingsError: it is none, or holds a password; it is never quoted.
    """
    if "@" in proxy:
        raise SettingsError(
            f"{at}: leave the password out of the settings: let the whole address lie in "
            '{ env = "NAME" } or { file = "/path" }'
        )
    if proxy != ENVIRONMENT:
        _read(proxy, at)


def _read(address: str, at: str) -> Proxy:
    try:
        parts = urlsplit(address)
        good = parts.scheme == "http" and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is none, a bracket without its other
        good = False
    # Never quoted: it may hold a password.
    if not good or re.search(r"[^!-~]|[?#]", address) or parts.path not in {"", "/"}:
        raise SettingsError(f"{at}: is not the address of a proxy such as http://HOST:3128")
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    user, password = (None if each is None else Secret(unquote(each)) for each in (parts.username, parts.password))
    if user is not None and password is None:
        password = Secret("")
    return Proxy(f"http://{host}:{parts.port or 80}", user, password)
