"""Proxy of an account: its address, and the credentials it may need."""

import base64
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from auditor.config.secrets import read_secret
from auditor.config.settings import Account, SecretSource, split_url
from auditor.errors import SettingsError
from auditor.models import Secret

FROM_ENVIRONMENT = "environment"
"""Value of ``proxy`` that honours the environment variables."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy that is reached by plain HTTP, at ``http://HOST:PORT``."""

    url: str
    user: Secret | None = None
    password: Secret | None = None

    @property
    def address(self) -> str:
        """``HOST:PORT``, for errors."""
        return self.url.removeprefix("http://")

    @property
    def authorization(self) -> Secret | None:
        """Value of ``Proxy-Authorization``; see https://www.rfc-editor.org/rfc/rfc7617."""
        if self.user is None or self.password is None:
            return None
        credentials = f"{self.user.reveal()}:{self.password.reveal()}".encode()
        return Secret(f"Basic {base64.b64encode(credentials).decode()}")


def resolve_proxy(account: Account, url: str | None = None) -> Proxy | None:
    """Return the proxy of an account, read from where its address is stored; None if it has none.

    ``url`` is what is requested through it, the account's endpoint by default: the environment may exempt a host.

    Raises:
        SettingsError: the address cannot be read, or is not that of a proxy.
    """
    at = f'account "{account.name}": proxy'
    if account.proxy is None:
        return None
    if isinstance(account.proxy, SecretSource):
        return _parse_proxy(read_secret(account.proxy, account=account.name, key="proxy").reveal(), at)
    if account.proxy != FROM_ENVIRONMENT:
        return _parse_proxy(account.proxy, at)
    from urllib.request import getproxies_environment, proxy_bypass  # imports the whole of http.client

    parts = urlsplit(account.endpoint if url is None else url)
    scheme, port = parts.scheme, parts.port or {"https": 443}.get(parts.scheme, 80)
    address = getproxies_environment().get(scheme, "")
    if not address or proxy_bypass(f"{parts.hostname}:{port}"):
        return None
    return _parse_proxy(address if "://" in address else f"http://{address}", f"{at}: {scheme.upper()}_PROXY")


def validate_proxy(proxy: str, at: str) -> None:
    """Raise SettingsError unless this is ``"environment"`` or the address of a proxy without a password."""
    if "@" in proxy:
        raise SettingsError(
            f"{at}: keep the password out of the settings: store the complete address in "
            '{ env = "NAME" } or { file = "/path" }'
        )
    if proxy != FROM_ENVIRONMENT:
        _parse_proxy(proxy, at)


def _parse_proxy(address: str, at: str) -> Proxy:
    parts = split_url(address)
    odd = parts is None or parts.scheme != "http" or parts.path not in {"", "/"}
    # The address is never quoted: it may contain a password.
    if parts is None or odd or re.search(r"[^!-~]|[?#]", address):
        raise SettingsError(f"{at}: is not the address of a proxy such as http://HOST:3128")
    host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
    user, password = (None if each is None else Secret(unquote(each)) for each in (parts.username, parts.password))
    if user is not None and password is None:
        password = Secret("")
    return Proxy(f"http://{host}:{parts.port or 80}", user, password)
