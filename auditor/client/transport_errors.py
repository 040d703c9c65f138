"""Errors of connections and proxies, as errors of the platform."""

import errno
import os
import re
import ssl

import aiohttp
from aiohttp.http import HttpProcessingError

from auditor.client.decoders import one_line
from auditor.client.signing import percent_encode
from auditor.config.proxy import Proxy
from auditor.errors import PROXY, PlatformError, RefusedAccountError, TransientError

WANTS_PASSWORD, _NO_WAY = 407, {403, 502, 503, 504}
"""What a proxy answers that wants another password, https://www.rfc-editor.org/rfc/rfc9110#name-407-proxy-authentication-re;
and that does not reach the platform or is not to.
"""


class ProxyError(aiohttp.ClientError):
    """It is the proxy that is in the way; ``sentence`` says how, ``refused`` whether it wants another password."""

    def __init__(self, sentence: str, *, refused: bool = False) -> None:
        super().__init__(sentence)
        self.sentence, self.refused = sentence, refused


def _in_the_way(error: Exception, proxy: str, host: str) -> ProxyError:
    """What is wrong with a proxy that gives no connection; nothing of what it says is quoted."""
    match error:
        case aiohttp.ClientHttpProxyError():
            return _refused(proxy, host, error.status)
        case aiohttp.ClientConnectorDNSError():
            return ProxyError(f"the name of {proxy} cannot be resolved")
        case aiohttp.ClientProxyConnectionError():
            return ProxyError(f"{proxy} cannot be reached: {_reason(error.os_error)}")
        case TimeoutError():
            return ProxyError(f"{proxy} does not connect to {host} in time")
        case aiohttp.ClientResponseError():
            return ProxyError(f"{proxy} sends what is no HTTP answer")
    return ProxyError(f"{proxy} breaks the connection to {host}")


def _reason(error: OSError) -> str:
    number = error.errno
    return os.strerror(number) if number is not None and number in errno.errorcode else error.strerror or "refused"


def _refused(proxy: str, host: str, status: int) -> ProxyError:
    if status == WANTS_PASSWORD:
        return ProxyError(f"{proxy} does not accept our user and password, or our having none", refused=True)
    return ProxyError(f"{proxy} does not let us through to {host}: it answers {status}")


def explained(error: Exception, host: str, proxy: Proxy | None = None) -> PlatformError:
    """Our error for what went wrong below HTTP, without the URL that aiohttp's text may hold.

    Args:
        error: of aiohttp's, or the system's.
        host: the platform's.
        proxy: what it was asked through.
    """
    by = "" if proxy is None else f" through the proxy {proxy.place}"
    match error:
        case ProxyError():
            kind = RefusedAccountError if error.refused else TransientError
            return kind(PROXY, one_line(error.sentence))
        case TimeoutError():
            code, sentence = "auditor.Timeout", f"{host} did not answer in time{by}"
        case aiohttp.ClientConnectorCertificateError():
            code, sentence = "auditor.TLS", f"{host} is not trusted{by}: {error.certificate_error}"
        case aiohttp.ClientSSLError() | ssl.SSLError():
            code, sentence = "auditor.TLS", f"no TLS with {host}{by}: {getattr(error, 'os_error', error)}"
        case aiohttp.ClientConnectorDNSError():
            code, sentence = "auditor.DNS", f"the name {host} cannot be resolved"
        case aiohttp.ClientConnectorError():
            code, sentence = "auditor.Unreachable", f"{host} cannot be reached: {_reason(error.os_error)}"
        case HttpProcessingError():
            code, sentence = "auditor.BadAnswer", f"{host} sent what is no HTTP answer{by}"
        case aiohttp.ClientPayloadError():
            code, sentence = "auditor.CutBody", f"{host} closed in the middle of a body{by}"
        case aiohttp.ServerDisconnectedError() | ConnectionResetError() | aiohttp.ClientOSError():
            code, sentence = "auditor.Disconnected", f"{host} closed the connection{by}"
        case _:
            code, sentence = "auditor.BadAnswer", f"{host} sent what is no HTTP answer{by} ({type(error).__name__})"
    return TransientError(code, one_line(sentence))


def of_proxy(error: PlatformError, proxy: Proxy, host: str) -> PlatformError:
    """The error of an answer that came by plain HTTP through a proxy: the proxy's own, if it is who answered.

    Where the words of an answer stay, what the proxy was told is taken out of them, should it be quoted.
    """
    status = error.http_status
    if status == WANTS_PASSWORD or (status in _NO_WAY and error.code == f"HTTP {status}"):
        return explained(_refused(f"the proxy {proxy.place}", host, status), host)
    told = [each.reveal() for each in (proxy.authorization, proxy.password) if each is not None]
    return without(error, *told, *(each.rpartition(" ")[2] for each in told))


def without(error: PlatformError, *hidden: str) -> PlatformError:
    """The error with what must not be seen, should somebody have quoted it, taken out of its text."""
    forms = [form for each in hidden if each for form in (re.escape(each), re.escape(percent_encode(each)))]
    if not forms:
        return error
    quoted = re.compile("|".join(forms), re.IGNORECASE)
    error.code, error.message = quoted.sub("***", error.code), quoted.sub("***", error.message)
    if error.request_id is not None:
        error.request_id = quoted.sub("***", error.request_id)
    error.args = (f"{error.code}: {error.message}" if error.message else error.code,)
    return error
