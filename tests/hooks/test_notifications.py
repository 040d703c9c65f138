"""Messages to chats, mailboxes and webhooks: each arrives once, or its failure is reported, within the time limit."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from auditor.config.settings import NotifySettings
from auditor.hooks import notifications
from auditor.hooks.message import RunMessage
from auditor.hooks.notifications import NotifyTarget, OutgoingMessage, check_addresses, send_messages
from auditor.models import Secret
from tests.hooks.chat_services import (
    CHATS,
    TOKEN,
    Behaviour,
    Chats,
    MailServer,
    accepting,
    breaking,
    chats,
    cutting,
    limiting,
    limiting_first,
    mail_server,
    redirecting,
    refusing,
)
from tests.hooks.receiver import receiving

TITLE = "FAILED, exit code 1: nightly"
MESSAGE = RunMessage("failure", TITLE, "nightly", "run", "3 of 5 devices answered", notes="<!channel> @all <at id=all>")
NAMES = sorted((*CHATS, "mail"))


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Chats, MailServer]]:
    with chats(tmp_path) as running, mail_server() as mail:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        for name in ("https_proxy", "no_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        yield running, mail


def message_to(name: str, address: str | None = None, webhook: str | None = None) -> OutgoingMessage:
    target = NotifyTarget(
        NotifySettings(name=name),
        address=None if address is None else Secret(address),
        webhook=None if webhook is None else Secret(webhook),
    )
    return OutgoingMessage(target, "msg_1", MESSAGE.title, MESSAGE.outcome, MESSAGE.render(), b"{}")


def send_to_all(services: tuple[Chats, MailServer], behaviour: Behaviour = accepting) -> dict[str, str | None]:
    """Send a message to every stand-in, which the chats answer with a behaviour."""
    running, mail = services
    running.behaviour = behaviour
    addresses = {name: chat.address for name, chat in CHATS.items()} | {"mail": mail.address}
    problems = send_messages([message_to(name, address) for name, address in addresses.items()])
    assert sorted(problems) == NAMES
    assert TOKEN not in str(problems)
    return problems


def arrived(services: tuple[Chats, MailServer]) -> dict[str, int]:
    running, mail = services
    return {name: len(texts) for name, texts in {**running.texts, "mail": mail.texts}.items() if texts}


def test_a_message_arrives_at_every_service_once_and_mentions_nobody(services: tuple[Chats, MailServer]) -> None:
    assert set(send_to_all(services).values()) == {None}
    running, mail = services
    assert arrived(services) == dict.fromkeys(NAMES, 1)
    for name, (text,) in {**running.texts, "mail": mail.texts}.items():
        assert TITLE in text, name
        assert "3 of 5 devices answered" in text, name
        assert not {"<!channel>", "@all", "<at"} & set(text.split()), name
        assert text.index("answered") < text.index("channel"), name


def test_a_refusal_inside_a_success_is_a_failure(services: tuple[Chats, MailServer]) -> None:
    services[1].replies["RCPT"] = ["550 no such user"]
    assert send_to_all(services, refusing) == {
        "slack": "the service answered 200 but refused the message: invalid_token",
        "teams": "the service answered 200 but refused the message with code NotEnoughPermissions: "
        "The bot is not part of the conversation roster.",
        "dingtalk": "the service answered 200 but refused the message with code 310000: keywords not in content",
        "feishu": "the service answered 200 but refused the message with code 19024: Key Words Not Found",
        "wecom": "the service answered 200 but refused the message with code 93000",  # its text quotes the key
        "mail": "the mail server answered 550: no such user",
    }
    assert arrived(services) == {}
    assert {name: len(requests) for name, requests in services[0].requests.items()} == dict.fromkeys(CHATS, 1)


@pytest.mark.slow
def test_a_service_that_limits_messages_is_waited_for(services: tuple[Chats, MailServer]) -> None:
    services[1].replies["RCPT"] = ["451 greylisted, try again later", "250 ok"]
    assert set(send_to_all(services, limiting_first).values()) == {None}
    assert arrived(services) == dict.fromkeys(NAMES, 1)
    assert {name: len(requests) for name, requests in services[0].requests.items()} == dict.fromkeys(CHATS, 2)


@pytest.mark.slow
def test_a_limit_that_lasts_is_a_failure_within_the_time(
    services: tuple[Chats, MailServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "ANSWER_SECONDS", 2.5)
    services[1].replies["greeting"] = ["421 too many connections"]
    problems = send_to_all(services, limiting)
    assert problems["slack"] == "the service answered 429: rate_limited and requested a retry after 3,600 s"
    assert problems["teams"] == "the service answered 429 and requested a retry after 3,600 s"
    limited = "the service answered 200 but refused the message with code"
    assert str(problems["dingtalk"]).startswith(f"{limited} 130101: send too fast, exceed 20 times per minute")
    assert str(problems["feishu"]).startswith(f"{limited} 11232: frequency limited psm[")
    assert str(problems["wecom"]).startswith(f"{limited} 45009: api freq out of limit")
    assert str(problems["mail"]).startswith("the mail server answered 421: too many connections")
    assert arrived(services) == {}


def test_a_redirect_is_a_failure_and_is_not_followed(services: tuple[Chats, MailServer]) -> None:
    problems = send_to_all(services, redirecting)
    assert {problems[name] for name in CHATS} == {"the service answered 307: redirects are not allowed"}
    assert sorted(services[0].requests) == sorted(CHATS)
    assert arrived(services) == {"mail": 1}


@pytest.mark.parametrize("command", ["DATA", "end"])
def test_a_connection_that_is_cut_is_a_failure_and_not_sent_twice(
    services: tuple[Chats, MailServer], command: str
) -> None:
    services[1].replies[command] = [""]
    problems = send_to_all(services, cutting)
    cut = "closed the connection before it answered; the message may have arrived"
    assert {problems[name] for name in CHATS} == {f"the service {cut}"}
    assert problems["mail"] == "the mail server closed the connection, or is slow; the message may have arrived"
    assert {name: len(requests) for name, requests in services[0].requests.items()} == dict.fromkeys(CHATS, 1)
    assert len(services[1].mails) == (command == "end")


def test_an_error_is_a_failure_without_its_text_if_that_quotes_the_address(services: tuple[Chats, MailServer]) -> None:
    services[1].replies["MAIL"] = ["554 5.7.1 rejected by policy"]
    problems = send_to_all(services, breaking)
    assert {problems[name] for name in CHATS} == {"the service answered 500"}
    assert problems["mail"] == "the mail server answered 554: 5.7.1 rejected by policy"


@pytest.mark.slow
def test_slow_services_do_not_delay_others_and_end_at_the_time_limit(
    services: tuple[Chats, MailServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notifications, "MAX_SECONDS", 6.0)
    running, mail = services
    mail.stalled = threading.Event()
    running.behaviour = lambda chat, number: chat.accepted if chat is CHATS["feishu"] else running.stall(chat, number)
    began, processes = time.monotonic(), apprise_processes()
    with receiving() as receiver:
        addresses = {name: chat.address for name, chat in CHATS.items()} | {"mail": mail.address}
        messages = [message_to(name, address) for name, address in addresses.items()]
        problems = send_messages([*messages, message_to("hook", webhook=receiver.address)])
    assert time.monotonic() - began < 12
    assert (problems["feishu"], problems["hook"], len(receiver.bodies)) == (None, None, 1)
    others = {name: problem for name, problem in problems.items() if problem is not None}
    assert sorted(others) == sorted(set(NAMES) - {"feishu"})
    assert set(others.values()) == {"no answer within 19 s; the message may have arrived"}
    assert apprise_processes() == processes


def apprise_processes() -> int:
    """Return how many processes of this one run Apprise."""
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout
    return sum(f"{sys.executable} -P -m auditor.hooks.apprise_process" in line for line in found.splitlines())


@pytest.mark.slow
def test_unreachable_services_are_failures_without_their_address() -> None:
    addresses = {
        "refused": f"json://127.0.0.1:1/{TOKEN}",
        "unknown": f"json://no-such-host.invalid/{TOKEN}",
        "mail": f"mailto://{TOKEN}:{TOKEN}@127.0.0.1:1/?smtp=127.0.0.1&mode=insecure&from=a@b.example&to=a@b.example",
        "none": f"nosuchservice://{TOKEN}",
    }
    checked = check_addresses((name, Secret(address)) for name, address in addresses.items())
    assert {name for name, problem in checked.items() if problem is not None} == {"none"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(notifications, "ANSWER_SECONDS", 0.0)
        patch.setenv("NO_PROXY", "*")
        problems = send_messages([message_to(name, address) for name, address in addresses.items()])
    assert problems["refused"] == problems["unknown"] == "the service cannot be reached"
    assert problems["none"] == "the address is not one of a service that Apprise has"
    assert problems["mail"] == "the mail server cannot be reached"
    assert TOKEN not in str(problems)


def test_a_process_that_fails_is_a_failure_of_each_message(monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("/no/such/python", "/bin/true"):
        monkeypatch.setattr(sys, "executable", executable)
        problems = send_messages([message_to("a", "json://127.0.0.1:1"), message_to("b", "json://127.0.0.1:1")])
        assert problems == dict.fromkeys("ab", "the process that sends it cannot be started, or fails")
        assert check_addresses([("a", Secret("nosuchservice://x"))]) == {"a": None}


def test_secrets_are_in_no_text_of_a_target() -> None:
    target = NotifyTarget(NotifySettings(name="a"), Secret(f"slack://{TOKEN}"), key=TOKEN.encode())
    assert TOKEN not in f"{target!r} {target} {message_to('a', TOKEN)!r}"
    assert json.dumps(TOKEN) not in repr(target)
