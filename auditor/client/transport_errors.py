"""Errors of connections, HTTP and proxies, as errors of the platform's class with a sentence for people."""

import errno
import os
import re
import ssl
from collections.abc import Mapping

import aiohttp
from aiohttp.http import HttpProcessingError

from auditor.client.decoders import clean_message
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
        sentence = f"redirected to {place}, which is never followed; if it is the platform, set it as endpoint"
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


def redact(error: PlatformError, *secrets: str) -> PlatformError:
    """Replace secrets, raw or escaped, in the text of an error; return the error."""
    forms = [form for each in secrets if each for form in (re.escape(each), re.escape(percent_encode(each)))]
    if not forms:
        return error
    quoted = re.compile("|".join(forms), re.IGNORECASE)
    error.code, error.message = quoted.sub("***", error.code), quoted.sub("***", error.message)
    if error.request_id is not None:
        error.request_id = quoted.sub("***", error.request_id)
    error.args = (f"{error.code}: {error.message}" if error.message else error.code,)
    return error
