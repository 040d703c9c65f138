"""Errors of connections, HTTP and proxies, as errors of the platform's class with a sentence for people."""

import errno
import html
import os
import re
import ssl
from collections.abc import Mapping
from urllib.parse import unquote

import aiohttp
from aiohttp.http import HttpProcessingError

from auditor.client.decoders import MAX_MESSAGE_LENGTH, clean_message
from auditor.client.signing import percent_encode
from auditor.config.proxy import Proxy
from auditor.errors import PROXY, AccountDeniedError, PlatformError, TransientError

PROXY_AUTHENTICATION_REQUIRED = 407
"""https://www.rfc-editor.org/rfc/rfc9110#name-407-proxy-authentication-re"""

SWITCHING_PROTOCOLS = 101
"""https://www.rfc-editor.org/rfc/rfc9110#name-101-switching-protocols"""

REDIRECTS = frozenset({301, 302, 303, 307, 308})
"""https://www.rfc-editor.org/rfc/rfc9110#name-redirection-3xx"""

_INVALID_HTTP = (
    (r"content-length|transfer-encoding", "the length of its response is stated twice or in contradicting ways"),
    (r"got more than|too many headers", "the headers of its response are too many or too large"),
    (r"\\?x1[56]\\?x03[\\ ]?\\?x0|\x15\x03", "it answers with TLS: the endpoint needs https://"),
    (r"status line|expected http/|invalid status|invalid character", "the first line of its response is not HTTP"),
)
"""What aiohttp's text about invalid HTTP contains, and the sentence for it. The text itself quotes the response."""

_PROXY_FAILURES = {403, 502, 503, 504}
"""Statuses of a proxy that cannot or must not connect to the platform."""


class ProxyError(aiohttp.ClientError):
    """The proxy gives no connection. ``sentence`` says why; ``denied``: it requires another password."""

    def __init__(self, sentence: str, *, denied: bool = False) -> None:
        super().__init__(sentence)
        self.sentence, self.denied = sentence, denied


def proxy_error(error: Exception, proxy: str, host: str) -> ProxyError:
    """Return an error that says why a proxy gives no connection, without a quote of the proxy's own words."""
    match error:
        case aiohttp.ClientHttpProxyError():
            return _rejection(proxy, host, error.status)
        case aiohttp.ClientConnectorDNSError():
            return ProxyError(f"the name of {proxy} cannot be resolved")
        case aiohttp.ClientProxyConnectionError():
            return ProxyError(f"{proxy} cannot be reached: {os_reason(error.os_error)}")
        case TimeoutError():
            return ProxyError(f"{proxy} does not connect to {host} in time")
        case aiohttp.ClientResponseError():
            return ProxyError(f"{proxy} does not answer with valid HTTP")
    return ProxyError(f"{proxy} breaks the connection to {host}")


def os_reason(error: OSError) -> str:
    """Return the system's text for an error."""
    number = error.errno
    return os.strerror(number) if number is not None and number in errno.errorcode else error.strerror or "refused"


def _rejection(proxy: str, host: str, status: int) -> ProxyError:
    if status == PROXY_AUTHENTICATION_REQUIRED:
        return ProxyError(f"{proxy} does not accept the user and password, or requires them", denied=True)
    return ProxyError(f"{proxy} does not connect to {host}: status {status}")


def to_platform_error(error: Exception, host: str, proxy: Proxy | None = None) -> PlatformError:
    """Return the platform error for an error of aiohttp or the system, without the URL that its text may contain."""
    via = "" if proxy is None else f" through the proxy {proxy.address}"
    match error:
        case ProxyError():
            return _no_connection(error)
        case TimeoutError():
            code, sentence = "auditor.Timeout", f"{host} did not answer in time{via}"
        case aiohttp.ClientConnectorCertificateError():
            code, sentence = "auditor.TLS", f"{host} is not trusted{via}: {error.certificate_error}"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            code, sentence = "auditor.TLS", f"no TLS with {host}{via}: {getattr(error, 'os_error', error)}"
        case aiohttp.ClientConnectorDNSError():
            code, sentence = "auditor.DNS", f"the name {host} cannot be resolved"
        case aiohttp.ClientConnectorError():
            code, sentence = "auditor.Unreachable", f"{host} cannot be reached: {os_reason(error.os_error)}"
        case HttpProcessingError() | aiohttp.ClientResponseError():
            sentence = f"{host} did not answer with valid HTTP{via}{_invalid_http_reason(error.message)}"
            code = "auditor.InvalidHTTP"
        case aiohttp.ClientPayloadError():
            code, sentence = "auditor.IncompleteBody", f"{host} closed the connection within a body{via}"
        case aiohttp.ServerDisconnectedError() | ConnectionResetError() | aiohttp.ClientOSError():
            code, sentence = "auditor.Disconnected", f"{host} closed the connection{via}"
        case _:
            code = "auditor.InvalidHTTP"
            sentence = f"{host} did not answer with valid HTTP{via} ({type(error).__name__})"
    return TransientError(code, clean_message(sentence))


def _no_connection(error: ProxyError) -> PlatformError:
    if not error.denied:
        return TransientError(PROXY, clean_message(error.sentence))
    denied = AccountDeniedError(PROXY, clean_message(error.sentence))
    denied.cause = "proxy"
    return denied


def _invalid_http_reason(message: str) -> str:
    reasons = (f": {reason}" for pattern, reason in _INVALID_HTTP if re.search(pattern, message, re.IGNORECASE))
    return next(reasons, "")


def elsewhere(status: int, headers: Mapping[str, str]) -> TransientError:
    """Return the error of a response that points somewhere else. Signed requests follow no redirect.

    The query of a redirect is omitted: it usually repeats that of the request, with its signature.
    """
    if status == SWITCHING_PROTOCOLS:
        protocol = clean_message(headers.get("Upgrade", "")) or "another one"
        sentence = f"the server changes the protocol to {protocol}, which was not requested"
    else:
        target = re.split("[?#]", headers.get("Location", ""), maxsplit=1)[0]
        place = clean_message(re.sub("//[^/]*@", "//", target)) or "an unnamed place"
        is_endpoint = re.fullmatch(r"https?://[^/]+/?", place, re.IGNORECASE)
        advice = "if it is the platform, set it as endpoint" if is_endpoint else "a proxy or a portal may have answered"
        sentence = f"redirected to {place}, which is never followed; {advice}"
    return TransientError(f"HTTP {status}", sentence, http_status=status)


def attribute_to_proxy(error: PlatformError, proxy: Proxy, host: str) -> PlatformError:
    """Return the error of a response that came by plain HTTP through a proxy: the proxy's own, if it answered itself.

    A response may quote the proxy's credentials, so they are removed from its text.
    """
    status = error.http_status
    if status == PROXY_AUTHENTICATION_REQUIRED or (status in _PROXY_FAILURES and error.code == f"HTTP {status}"):
        return to_platform_error(_rejection(f"the proxy {proxy.address}", host, status), host)
    secrets = [each.reveal() for each in (proxy.authorization, proxy.password) if each is not None]
    return redact(error, *secrets, *(each.rpartition(" ")[2] for each in secrets))


MIN_QUOTED_RUN = 8
"""Letters and digits of a secret, in a row, that an error must not contain."""

OMITTED = "the text is omitted because it quotes a signature or a password"
"""Message in place of one that quotes a secret in an unusual form."""

_UNICODE_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))")
_ESCAPES = re.compile(r"[%&\\]")


def redact(error: PlatformError, *secrets: str) -> PlatformError:
    """Remove secrets from the text of an error; return the error.

    A secret is replaced where it is quoted as a whole, raw or percent-encoded. A text that quotes ``MIN_QUOTED_RUN``
    characters of it in any other form is omitted: cut, escaped as a URL, HTML or JSON, several times or in part.
    """
    quoted = [_Secret(each) for each in secrets if each]
    error.code, error.message = _redacted(error.code, quoted, "***"), _redacted(error.message, quoted, OMITTED)
    if error.request_id is not None:
        error.request_id = _redacted(error.request_id, quoted, "***")
    error.args = (f"{error.code}: {error.message}" if error.message else error.code,)
    return error


class _Secret:
    """A text that no error may quote. Case, punctuation and escapes make no difference.

    A short one is sought as a whole: its letters and digits alone may be a common word.
    """

    def __init__(self, text: str) -> None:
        self.text, self._plain = text, _unescaped(text).lower()
        self.run = _letters(self._plain)
        last = len(self.run) - MIN_QUOTED_RUN
        self._runs = [self.run[at : at + MIN_QUOTED_RUN] for at in range(last + 1)]

    def is_in(self, plain: str, letters: str) -> bool:
        """Return whether a text quotes the secret, given without escapes and as ``letters`` alone."""
        return any(run in letters for run in self._runs) if self._runs else self._plain in plain


def _redacted(text: str, secrets: list[_Secret], omitted: str) -> str:
    """Return a text without what it quotes of secrets, or ``omitted`` if that cannot be cut out."""
    if len(text) >= MAX_MESSAGE_LENGTH and any(_is_cut_within(text, each) for each in secrets):
        return omitted
    if not _quotes(text, secrets):
        return text
    forms = "|".join(re.escape(form) for each in secrets for form in (percent_encode(each.text), each.text))
    text = re.sub(forms, "***", text, flags=re.IGNORECASE)
    return omitted if _quotes(text, secrets) else text


def _quotes(text: str, secrets: list[_Secret]) -> bool:
    plain = _unescaped(text).lower()
    letters = _letters(plain)
    return any(each.is_in(plain, letters) for each in secrets)


def _is_cut_within(text: str, secret: _Secret) -> bool:
    """Return whether a text ends with the beginning of a secret, of at least three letters or digits."""
    letters = _letters(_unescaped(text).lower())
    return any(letters.endswith(secret.run[:size]) for size in range(3, min(MIN_QUOTED_RUN, len(secret.run))))


def _unescaped(text: str) -> str:
    """Return a text without the escapes of URLs, HTML and JSON, however deep they are nested."""
    while _ESCAPES.search(text):
        plain = _UNICODE_ESCAPE.sub(lambda found: chr(int(found[1] or found[2], 16)), text)
        plain = unquote(html.unescape(plain))
        if plain == text:
            break
        text = plain
    return text


def _letters(plain: str) -> str:
    return "".join(filter(str.isalnum, plain))
