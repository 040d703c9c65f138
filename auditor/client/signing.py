"""The platform's request signature: HMAC-SHA1 over a canonical query, version 1.0. Pure: time and nonce are arguments.

Source: the platform's page on request signatures, which Tuya and Alibaba Cloud share. The tests compare it with the
vendor's SDK (``aliyunsdkcore.auth.composer.rpc_signature_composer``).
"""

import hmac
import re
from base64 import b64encode
from binascii import b2a_base64
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import quote

from auditor.models import Secret

_UNRESERVED = re.compile(r"[A-Za-z0-9._~-]*")
"""Text that needs no escaping, as nearly all that is sent: the check takes a tenth of the time of escaping."""

_PLACEHOLDER = "\0"
"""Marks the place of a value while a text is escaped; an escaped text never contains it."""


def percent_encode(text: str) -> str:
    """Return text as UTF-8 with everything escaped but the unreserved characters of RFC 3986."""
    return text if _UNRESERVED.fullmatch(text) else quote(text, safe="-_.~")


def string_to_sign(method: str, query: str) -> str:
    """Return the text that is signed for a canonical query. Its path is always ``/``, whatever the endpoint's path."""
    # The only characters of an escaped query that need escaping.
    escaped = query.replace("%", "%25").replace("&", "%26").replace("=", "%3D")
    return f"{method}&%2F&{escaped}"


def signature(secret: Secret, text: str) -> str:
    """Return the HMAC-SHA1 of a text in base64; its key is the secret and a trailing ``&``."""
    return b64encode(hmac.digest(_signing_key(secret), text.encode(), "sha1")).decode()


class Signer:
    """Signs the requests of one access key, with the security token of a temporary one.

    ``constants`` are parameters that all requests have.

    Requests of one operation in one second differ in few values. So the sorted query, with placeholders for those
    values, is built once a second. The keyed hash is built once and copied. That halves the work.
    """

    def __init__(
        self, access_key_id: str, secret: Secret, constants: Mapping[str, str], *, token: Secret | None = None
    ) -> None:
        key = {"AccessKeyId": access_key_id, "SignatureMethod": "HMAC-SHA1", "SignatureVersion": "1.0"}
        self._constants, self._token = {**constants, **key}, token
        self._hmac = hmac.new(_signing_key(secret), digestmod="sha1")
        self._templates: dict[tuple[str, ...], _QueryTemplate] = {}
        self._timestamp = ""

    def sign(self, method: str, parameters: Mapping[str, str], *, timestamp: str, nonce: str) -> tuple[str, str]:
        """Return the signed query string for the parameters, and the bare signature in it.

        Args:
            method: ``GET`` or ``POST``.
            parameters: the operation's parameters with ``Action`` and ``Version``.
            timestamp: UTC, ``YYYY-MM-DDThh:mm:ssZ``.
            nonce: must never have been used with this key.
        """
        if timestamp != self._timestamp:
            self._timestamp = timestamp
            self._templates.clear()
        variable = {**parameters, "SignatureNonce": nonce}
        names = (method, *variable)
        template = self._templates.get(names) or self._build_template(*names)
        values = [variable[name] for name in template.names]
        if _UNRESERVED.fullmatch("".join(values)):
            query, text = template.query % tuple(values), template.text % tuple(values)
        else:
            query = template.query % tuple(percent_encode(value) for value in values)
            text = string_to_sign(method, query)
        digest = self._hmac.copy()
        digest.update(text.encode())
        signed = b2a_base64(digest.digest(), newline=False).decode()
        escaped = signed.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D")
        return f"{query}&Signature={escaped}", signed

    def _build_template(self, method: str, *names: str) -> "_QueryTemplate":
        """Build the template of requests in this second whose variable parameters have these names.

        A parameter replaces a constant with its name; the request's time and nonce replace a parameter.
        """
        variable = tuple(sorted(set(names) - {"Timestamp"}))
        constant = {**self._constants, "Timestamp": self._timestamp}
        if self._token is not None:
            constant["SecurityToken"] = self._token.reveal()
        pairs = {
            name: f"{percent_encode(name)}={percent_encode(value)}".replace("%", "%%")
            for name, value in constant.items()
        }
        pairs |= {name: f"{percent_encode(name).replace('%', '%%')}=%s" for name in variable}
        query = "&".join(pairs[name] for name in sorted(pairs))
        # Values without anything to escape do not change in the text, so it is escaped once.
        marked = string_to_sign(method, query % ((_PLACEHOLDER,) * len(variable)))
        text = marked.replace("%", "%%").replace(_PLACEHOLDER, "%s")
        template = self._templates[method, *names] = _QueryTemplate(query, text, variable)
        return template


class _QueryTemplate(NamedTuple):
    """A sorted and escaped query with ``%s`` for the values of the parameters in ``names``, in their order.

    ``text`` is what is signed, for values that need no escaping.
    """

    query: str
    text: str
    names: tuple[str, ...]

    def __repr__(self) -> str:  # the rest may contain a token
        return f"_QueryTemplate(names={self.names})"


def _signing_key(secret: Secret) -> bytes:
    return f"{secret.reveal()}&".encode()
