"""Stand-ins of chat and mail services: what they accept, and how they refuse, by their public documents.

The chats are behind a proxy that answers for every host, with certificates of an authority of the test: the libraries
under test reach ``https://oapi.dingtalk.com`` and find a stand-in. Sources:

- Slack: https://api.slack.com/messaging/webhooks, https://api.slack.com/apis/rate-limits
- Teams: https://learn.microsoft.com/power-automate/teams/overview,
  https://learn.microsoft.com/microsoftteams/platform/webhooks-and-connectors/how-to/connectors-using
- DingTalk: https://open.dingtalk.com/document/orgapp/custom-robots-send-group-messages
- Feishu: https://open.feishu.cn/document/client-docs/bot-v3/add-custom-bot
- WeCom: https://developer.work.weixin.qq.com/document/path/91770
- SMTP: RFC 5321
"""

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.header import decode_header, make_header
from email.message import Message
from email.policy import default
from http.client import HTTPMessage, parse_headers
from io import BufferedReader
from pathlib import Path
from typing import Any

import trustme

TOKEN = "t0keninaddress0123456789"

Reply = tuple[int, dict[str, str], bytes]
"""Status, headers and body of a response."""


@dataclass(frozen=True)
class Request:
    host: str
    path: str
    headers: HTTPMessage
    body: bytes

    @property
    def table(self) -> dict[str, Any]:
        loaded: dict[str, Any] = json.loads(self.body)
        return loaded


@dataclass(frozen=True)
class ChatService:
    """A stand-in: its address in Apprise, its host, the text of a valid message, and its answers.

    ``refused`` is a refusal as the service sends it, inside an HTTP 200 where it does that; ``limited`` is its answer to
    too many messages.
    """

    address: str
    host: str
    text_of: Callable[[Request], str]
    accepted: Reply
    refused: Reply
    limited: Reply


def coded(**table: object) -> Reply:
    return 200, {"Content-Type": "application/json"}, json.dumps(table).encode()


def slack_text(request: Request) -> str:
    assert request.path == f"/services/T1JJ3T3L2/A1BRTD4JD/{TOKEN}"
    (attachment,) = request.table["attachments"]
    return f"{attachment.get('title', '')}\n{attachment['text']}"


def teams_text(request: Request) -> str:
    assert request.path.startswith("/workflows/flow/triggers/manual/paths/invoke?api-version=")
    assert f"sig={TOKEN}" in request.path
    (attachment,) = request.table["attachments"]
    assert (request.table["type"], attachment["contentType"]) == ("message", "application/vnd.microsoft.card.adaptive")
    return "\n".join(block["text"] for block in attachment["content"]["body"] if block["type"] == "TextBlock")


def dingtalk_text(request: Request) -> str:
    assert request.path == f"/robot/send?access_token={TOKEN}"
    assert request.table["msgtype"] == "text"
    return str(request.table["text"]["content"])


def feishu_text(request: Request) -> str:
    assert request.path == f"/open-apis/bot/v2/hook/{TOKEN}/"
    assert request.table["msg_type"] == "text"
    return str(request.table["content"]["text"])


def wecom_text(request: Request) -> str:
    assert request.path == f"/cgi-bin/webhook/send?key={TOKEN}"
    text = request.table["text"]["content"]
    assert (request.table["msgtype"], len(text.encode()) <= 2_048) == ("text", True)
    return str(text)


PLAIN = {"Content-Type": "text/html"}

CHATS = {
    "slack": ChatService(
        f"slack://T1JJ3T3L2/A1BRTD4JD/{TOKEN}/",
        "hooks.slack.com",
        slack_text,
        (200, PLAIN, b"ok"),
        (200, PLAIN, b"invalid_token"),
        (429, {"Retry-After": "0"}, b"rate_limited"),
    ),
    "teams": ChatService(
        f"workflows://prod-01.westus.logic.azure.com:443/flow/{TOKEN}",
        "prod-01.westus.logic.azure.com",
        teams_text,
        (202, {}, b""),
        coded(error={"code": "NotEnoughPermissions", "message": "The bot is not part of the conversation roster."}),
        (429, {"Retry-After": "0"}, b""),
    ),
    "dingtalk": ChatService(
        f"dingtalk://{TOKEN}",
        "oapi.dingtalk.com",
        dingtalk_text,
        coded(errcode=0, errmsg="ok"),
        coded(errcode=310000, errmsg="keywords not in content"),
        coded(errcode=130101, errmsg="send too fast, exceed 20 times per minute"),
    ),
    "feishu": ChatService(
        f"feishu://{TOKEN}",
        "open.feishu.cn",
        feishu_text,
        coded(code=0, msg="success", data={}),
        coded(code=19024, msg="Key Words Not Found"),
        coded(code=11232, msg="frequency limited psm[lark.oapi.app_platform_runtime]"),
    ),
    "wecom": ChatService(
        f"wecombot://{TOKEN}",
        "qyapi.weixin.qq.com",
        wecom_text,
        coded(errcode=0, errmsg="ok"),
        coded(errcode=93000, errmsg=f"invalid webhook url, hint: [1795312800], more info at ?key={TOKEN}"),
        coded(errcode=45009, errmsg="api freq out of limit"),
    ),
}

Behaviour = Callable[[ChatService, int], Reply | None]
"""Returns the answer to a request, which is the service's first, second, …; None: close the connection."""


def accepting(service: ChatService, _number: int) -> Reply:
    return service.accepted


def refusing(service: ChatService, _number: int) -> Reply:
    return service.refused


def limiting_first(service: ChatService, number: int) -> Reply:
    return service.limited if number == 1 else service.accepted


def limiting(service: ChatService, _number: int) -> Reply:
    status, headers, body = service.limited
    return status, headers | ({"Retry-After": "3600"} if status == 429 else {}), body


def redirecting(_service: ChatService, _number: int) -> Reply:
    return 307, {"Location": f"https://elsewhere.example/{TOKEN}"}, b""


def cutting(_service: ChatService, _number: int) -> None:
    return None


def breaking(_service: ChatService, _number: int) -> Reply:
    return 500, {}, f"no such hook: {TOKEN}".encode()


@dataclass
class Chats:
    """The stand-ins that run: what they were sent, and what they accepted."""

    behaviour: Behaviour = accepting
    requests: dict[str, list[Request]] = field(default_factory=dict)
    texts: dict[str, list[str]] = field(default_factory=dict)
    released: threading.Event = field(default_factory=threading.Event)
    environment: dict[str, str] = field(default_factory=dict)

    def answer(self, request: Request) -> Reply | None:
        named = [(name, chat) for name, chat in CHATS.items() if chat.host == request.host]
        name, chat = named[0] if named else (request.host, CHATS["slack"])
        self.requests.setdefault(name, []).append(request)
        reply = self.behaviour(chat, len(self.requests[name]))
        if reply is not None and reply == chat.accepted:
            self.texts.setdefault(name, []).append(chat.text_of(request))
        return reply

    def stall(self, _chat: ChatService, _number: int) -> None:
        self.released.wait(30)


@contextmanager
def chats(folder: Path) -> Iterator[Chats]:
    """Run the stand-ins; ``environment`` leads requests to them."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(folder / "ca.pem")
    running = Chats()
    contexts = {}
    for host in (*(chat.host for chat in CHATS.values()), "elsewhere.example", "slack.com"):
        contexts[host] = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(host).configure_cert(contexts[host])

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError, ssl.SSLError):
            connection.settimeout(30)
            with connection.makefile("rb") as lines:
                host = lines.readline().split()[1].decode().partition(":")[0]
                parse_headers(lines)
            connection.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
            with contexts[host].wrap_socket(connection, server_side=True) as tls, tls.makefile("rb") as received:
                reply = running.answer(read_request(host, received))
                if reply is not None:
                    status, headers, body = reply
                    fields = headers | {"Content-Length": str(len(body)), "Connection": "close"}
                    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
                    tls.sendall(f"HTTP/1.1 {status} Status\r\n{head}\r\n".encode() + body)

    with listening(serve) as port:
        running.environment = {
            "HTTPS_PROXY": f"http://127.0.0.1:{port}",
            "REQUESTS_CA_BUNDLE": str(folder / "ca.pem"),
            "NO_PROXY": "",
        }
        try:
            yield running
        finally:
            running.released.set()


def read_request(host: str, received: BufferedReader) -> Request:
    path = received.readline().split()[1].decode()
    headers = parse_headers(received)
    return Request(host, path, headers, received.read(int(headers.get("Content-Length", "0"))))


@contextmanager
def listening(serve: Callable[[socket.socket], None]) -> Iterator[int]:
    """Serve each connection of a port in a thread; yield the port."""
    threads: list[threading.Thread] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = server.accept()
                    threads.append(threading.Thread(target=serve, args=(connection,), daemon=True))
                    threads[-1].start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        server.shutdown(socket.SHUT_RDWR)
    thread.join(5)
    for each in threads:
        each.join(5)


@dataclass
class MailServer:
    """A mail server that runs: its address in Apprise, its replies by command, and the mails that it accepted.

    A reply is one text, or one for each time that the command comes; "" closes the connection.
    """

    address: str = ""
    replies: dict[str, list[str]] = field(default_factory=dict)
    mails: list[Message] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)
    stalled: threading.Event | None = None

    @property
    def texts(self) -> list[str]:
        found = []
        for mail in self.mails:
            subject = str(make_header(decode_header(mail["Subject"])))
            body = mail.get_payload(decode=True)
            assert isinstance(body, bytes)
            found.append(f"{subject}\n{body.decode()}")
        return found

    def reply(self, command: str, usual: str) -> str:
        self.commands.append(command)
        given = self.replies.get(command)
        return usual if given is None else given[min(self.commands.count(command), len(given)) - 1]


def talk_smtp(running: MailServer, connection: socket.socket, lines: BufferedReader) -> None:
    usual = {"EHLO": "250 mail", "MAIL": "250 ok", "RCPT": "250 ok", "DATA": "354 go", "QUIT": "221 bye"}

    def send(text: str) -> None:
        connection.sendall(f"{text}\r\n".encode())

    send(running.reply("greeting", "220 mail"))
    for line in lines:
        command = line.split(maxsplit=1)[0].decode().upper()
        reply = running.reply(command, usual.get(command, "250 ok"))
        if not reply:
            return
        send(reply)
        if command == "DATA" and reply.startswith("354"):
            content = b"".join(iter(lines.readline, b".\r\n"))
            reply = running.reply("end", "250 queued")
            if reply.startswith("250") or not reply:
                running.mails.append(message_from_bytes(content, policy=default.clone(utf8=False)))
            if not reply:
                return
            send(reply)


@contextmanager
def mail_server() -> Iterator[MailServer]:
    """Run a mail server without TLS, which its address allows by ``mailto``."""
    running = MailServer()

    def serve(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as lines:
            if running.stalled is not None:
                running.stalled.wait(30)
            talk_smtp(running, connection, lines)

    with listening(serve) as port:
        running.address = (
            f"mailto://127.0.0.1:{port}/?smtp=127.0.0.1&mode=insecure&from=auditor@example.com&to=ops@example.com"
        )
        try:
            yield running
        finally:
            if running.stalled is not None:
                running.stalled.set()
