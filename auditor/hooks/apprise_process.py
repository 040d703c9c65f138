"""Send messages by Apprise, in a process of its own: ``-m auditor.hooks.apprise_process``.

A JSON request comes from standard input, and a line of JSON is printed for each message once its outcome is clear.
Apprise reports True or False, writes addresses to its log, and takes some refusals inside an HTTP 200 for success. So
this process observes the requests themselves: what was answered, whether it is a refusal, and whether a message can
have arrived. A process can be killed, and its log is dropped.
"""

import contextlib
import json
import logging
import os
import re
import smtplib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from auditor.hooks.apprise_answers import FIRST_REFUSAL, MAIL_ACCEPTED, Answer, classify_reply, classify_response

MAX_ANSWER_BYTES = 1 << 20
"""Bytes of an answer that are read."""

CONNECT_SECONDS, READ_SECONDS = 5.0, 15.0
"""Seconds for a connection, and between two parts of an answer."""

FIRST_PAUSE = 1.0
"""Seconds before the second attempt where a service requests none; each further pause is twice as long."""

MIN_SECRET_LENGTH = 6
"""Characters of a part of an address that may be a secret."""


@dataclass
class _Attempt:
    """What the services answered to one attempt to send a message, in this thread."""

    answers: list[Answer] = field(default_factory=list)


_thread = threading.local()


def main() -> None:
    """Answer the request on standard input, and end without waiting for the libraries' threads."""
    os.umask(0o077)
    output = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # plugins may print
    logging.disable(logging.CRITICAL)
    request = json.load(sys.stdin)
    deadline: float = request["deadline"]  # by the clock of this machine since its start, which all processes share
    _observe_requests()
    _observe_mail()
    lock = threading.Lock()

    def work(message: Mapping[str, str]) -> None:
        try:
            problem = _check(message["address"]) if request["check_only"] else _send(message, deadline)
        except Exception as error:  # noqa: BLE001  the text of any error may contain the address
            problem = f"Apprise failed ({type(error).__name__})"
        with lock:
            output.write(json.dumps({"name": message["name"], "problem": problem}) + "\n")
            output.flush()

    _check("json://localhost")  # loads the plugins once, before threads would do it
    threads = [threading.Thread(target=work, args=(each,), daemon=True) for each in request["messages"]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os._exit(0)


def _open(address: str) -> Any:  # noqa: ANN401  a plugin, whose class differs
    """Return the plugin of an address; None if there is none."""
    import apprise

    asset = apprise.AppriseAsset(http_redirects=False, storage_mode="memory")
    plugin = apprise.Apprise.instantiate(address, asset=asset)
    if plugin is not None:
        plugin.socket_connect_timeout, plugin.socket_read_timeout = CONNECT_SECONDS, READ_SECONDS
        plugin.overflow_mode = apprise.OverflowMode.TRUNCATE
        plugin.retry = 0  # retries here know whether a message can have arrived
    return plugin


def _check(address: str) -> str | None:
    """Return why an address cannot be used; None if it can."""
    return None if _open(address) is not None else "is not an address of a service that Apprise has"


def _send(message: Mapping[str, str], deadline: float) -> str | None:
    """Send a message; return why it was not delivered, or None. Retry as long as no service can have accepted it."""
    import apprise

    plugin = _open(message["address"])
    if plugin is None:
        return "the address is not one of a service that Apprise has"
    pause, attempts = FIRST_PAUSE, 0
    while True:
        attempts += 1
        _thread.attempt = attempt = _Attempt()
        accepted = plugin.notify(
            body=message["body"],
            title=message["title"],
            notify_type=apprise.NotifyType(message["outcome"]),
            body_format=apprise.NotifyFormat.TEXT,
        )
        refusal = _find_refusal(attempt.answers, accepted=accepted)
        if refusal is None:
            return None if accepted else "the service did not accept it"
        seconds = pause if refusal.retry_after is None else refusal.retry_after
        delivered = any(answer.problem is None for answer in attempt.answers)
        if delivered or not refusal.retryable or time.monotonic() + seconds + CONNECT_SECONDS >= deadline:
            return _describe(refusal, attempts, message["address"])
        time.sleep(seconds)
        pause *= 2


def _find_refusal(answers: list[Answer], *, accepted: bool) -> Answer | None:
    """Return the last answer that says that a message was refused, if Apprise or the answer itself says so."""
    refusals = [answer for answer in answers if answer.problem is not None and (not accepted or answer.inside_success)]
    return refusals[-1] if refusals else None


def _describe(refusal: Answer, attempts: int, address: str) -> str:
    """Return a refusal as a sentence, without the service's own text if that contains a part of the address."""
    detail = "" if _shares_part(refusal.detail, f"{address} {unquote(address)}") else refusal.detail
    pause = "" if refusal.retry_after is None else f" and requested a retry after {refusal.retry_after:,.0f} s"
    tried = f", after {attempts} attempts" if attempts > 1 else ""
    return f"{refusal.problem}{f': {detail}' if detail else ''}{pause}{tried}"


def _shares_part(text: str, address: str) -> bool:
    """Return whether one of the texts has a part of the other that may be a secret."""
    return any(
        len(part) >= MIN_SECRET_LENGTH and part in other
        for one, other in ((text.lower(), address.lower()), (address.lower(), text.lower()))
        for part in re.split(r"[^\w-]+", one)
    )


def _observe_requests() -> None:
    """Record what every HTTP request of this process is answered; follow no redirect, and read a limited answer."""
    import requests

    original: Callable[..., requests.Response] = requests.Session.send

    def send(session: requests.Session, request: requests.PreparedRequest, **options: Any) -> requests.Response:  # noqa: ANN401
        options |= {"allow_redirects": False, "stream": True}
        host = urlsplit(request.url or "").hostname or ""
        try:
            response = original(session, request, **options)
            content = response.raw.read(MAX_ANSWER_BYTES, decode_content=True)
            response._content, response._content_consumed = content, True  # noqa: SLF001  as Response.content does
            response.close()
        except Exception as error:
            _record(_classify_error(error))
            raise
        _record(classify_response(host, response.status_code, response.headers, content, time.time()))
        return response

    requests.Session.send = send  # type: ignore[assignment, method-assign]


def _classify_error(error: Exception) -> Answer:
    """Classify an error below HTTP without its own text, which contains the address."""
    import requests
    import urllib3

    reason = getattr(error.args[0], "reason", None) if error.args else None
    match error:
        case requests.exceptions.SSLError():
            return Answer("the certificate of the service is not trusted")
        case requests.exceptions.ProxyError() if _is_of_proxy(getattr(reason, "original_error", None)):
            return Answer("the proxy cannot be reached, or refuses")
        case requests.exceptions.ConnectTimeout():
            return Answer("the service cannot be reached in time", retryable=True)
        case requests.exceptions.ReadTimeout() | urllib3.exceptions.ReadTimeoutError():
            return Answer("the service did not answer in time; the message may have arrived")
        case requests.exceptions.ConnectionError() if isinstance(reason, urllib3.exceptions.NewConnectionError):
            return Answer("the service cannot be reached", retryable=True)
    return Answer("the service closed the connection before it answered; the message may have arrived")


def _is_of_proxy(error: object) -> bool:
    """Return whether a proxy gave no connection. The class of errors after that is the same."""
    import urllib3

    return isinstance(error, urllib3.exceptions.NewConnectionError) or type(error) is OSError


def _observe_mail() -> None:
    """Record which commands to a mail server are refused, which mails it accepts, and whether it can be reached."""
    connect, getreply, data = smtplib.SMTP.connect, smtplib.SMTP.getreply, smtplib.SMTP.data

    def observed_connect(server: smtplib.SMTP, *address: Any, **options: Any) -> tuple[int, bytes]:  # noqa: ANN401
        try:
            return connect(server, *address, **options)
        except OSError:  # also of its greeting
            _record(Answer("the mail server cannot be reached", retryable=True))
            raise

    def observed_reply(server: smtplib.SMTP) -> tuple[int, bytes]:
        try:
            code, text = getreply(server)
        except (smtplib.SMTPServerDisconnected, OSError):
            _record(Answer("the mail server closed the connection, or is slow; the message may have arrived"))
            raise
        if code >= FIRST_REFUSAL:
            _record(classify_reply(code, text))
        return code, text

    def observed_data(server: smtplib.SMTP, message: Any) -> tuple[int, bytes]:  # noqa: ANN401  text or bytes
        code, text = data(server, message)
        if code == MAIL_ACCEPTED:
            _record(Answer())
        return code, text

    smtplib.SMTP.connect = observed_connect  # type: ignore[assignment, method-assign]
    smtplib.SMTP.getreply = observed_reply  # type: ignore[assignment, method-assign]
    smtplib.SMTP.data = observed_data  # type: ignore[assignment, method-assign]


def _record(answer: Answer) -> None:
    with contextlib.suppress(AttributeError):  # a thread of a library
        _thread.attempt.answers.append(answer)


if __name__ == "__main__":
    main()
