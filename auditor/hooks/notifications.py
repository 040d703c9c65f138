"""Send messages to all places of the settings, concurrently and within one time limit."""

import contextlib
import json
import secrets
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import anyio
from anyio.streams.text import TextReceiveStream

from auditor.concurrency import run_to_end
from auditor.config.settings import NotifySettings
from auditor.errors import AuditorError, WebhookError
from auditor.hooks.payload import Payload, render_event
from auditor.hooks.webhook import post_webhook
from auditor.models import Secret
from auditor.runs.folder import DEFERRED_HOOKS, PENDING_HOOKS
from auditor.storage.files import read_contained, replace_file
from auditor.text.formatting import format_utc

MAX_SECONDS = 19.0
"""Seconds for all messages together; with the end of their process less than 20."""

ANSWER_SECONDS = 17.5
"""Seconds within which Apprise retries, so that its own reason is reported."""

CHECK_SECONDS = 20.0
"""Seconds for a check of Apprise addresses, which sends nothing."""

MAX_RECORD_BYTES = 1 << 20

_NO_ANSWER = f"no answer within {MAX_SECONDS:g} s; the message may have arrived"
_NO_OUTCOME = "the process that sends it cannot be started, or fails"


@dataclass(frozen=True, slots=True)
class NotifyTarget:
    """A place that receives messages, with its secrets.

    Attributes:
        settings: the table of the settings.
        address: Apprise address.
        webhook: address of a webhook, instead.
        key: signs what the webhook receives.
        error: why it cannot receive a message.
    """

    settings: NotifySettings
    address: Secret | None = None
    webhook: Secret | None = None
    key: bytes | None = field(default=None, repr=False)
    error: str | None = None

    @property
    def name(self) -> str:
        """Its name in the settings."""
        return self.settings.name

    def wants(self, payload: Payload) -> bool:
        """Return whether it receives a message about this run."""
        when = self.settings.when
        return when == "always" or (payload.has_problems if when == "problems" else payload.has_changes)

    def compose(self, payload: Payload) -> "OutgoingMessage":
        """Return the message about a run."""
        message, link = payload.message, ""
        if self.settings.link is not None:
            link = self.settings.link.format_map({"run": quote(message.run), "name": quote(message.name)})
        text = replace(message, link=link).render(self.settings.message)
        event = payload.render_event(text)
        return OutgoingMessage(self, payload.message_id, message.title, message.outcome, text, event)


@dataclass(frozen=True, slots=True)
class OutgoingMessage:
    """A message to one place: for a chat a title and a text, for a webhook an event."""

    target: NotifyTarget
    message_id: str
    title: str
    outcome: str
    text: str
    event: bytes


def send_messages(
    messages: Sequence[OutgoingMessage], on_delivered: Callable[[str], None] | None = None
) -> dict[str, str | None]:
    """Send messages concurrently; return for each name why its message was not delivered, or None.

    ``on_delivered`` is called with the name of each place as soon as its message is delivered. An event loop of this
    thread waits meanwhile, for ``MAX_SECONDS`` at most.
    """
    problems: dict[str, str | None] = {each.target.name: each.target.error or _NO_ANSWER for each in messages}

    def report(name: str, problem: str | None) -> None:
        problems[name] = problem
        if problem is None and on_delivered is not None:
            on_delivered(name)

    due = [each for each in messages if each.target.error is None]
    webhooks = [(each, each.target.webhook) for each in due if each.target.webhook is not None]
    chats = [(each, each.target.address) for each in due if each.target.address is not None]

    async def post(message: OutgoingMessage, address: Secret) -> None:
        try:
            await post_webhook(address, message.event, message_id=message.message_id, key=message.target.key)
        except WebhookError as error:
            report(message.target.name, str(error))
        else:
            report(message.target.name, None)

    async def main() -> None:
        with anyio.move_on_after(MAX_SECONDS):
            async with anyio.create_task_group() as group:
                for message, address in webhooks:
                    group.start_soon(post, message, address)
                if chats:
                    requests = [
                        {
                            "name": message.target.name,
                            "address": address.reveal(),
                            "title": message.title,
                            "body": message.text,
                            "outcome": message.outcome,
                        }
                        for message, address in chats
                    ]
                    group.start_soon(_call_apprise, requests, report)

    if due:
        run_to_end(main)
    return problems


def send_test(targets: Sequence[NotifyTarget], name: str) -> dict[str, str | None]:
    """Send a test message about the audit ``name``; return for each place why it was not delivered, or None."""
    message_id = f"msg_{secrets.token_hex(16)}"
    text = f"{name} sends its messages here. Nothing is wrong, and there is nothing to do."
    event = render_event("test", message_id, format_utc(time.time()), text, None)
    return send_messages(
        [OutgoingMessage(each, message_id, f"Test: {name}", "success", text, event) for each in targets]
    )


def check_addresses(addresses: Iterable[tuple[str, Secret]]) -> dict[str, str | None]:
    """Return for each name why its Apprise address cannot be used, or None.

    A check that does not end is no reason: a machine that is busy must not prevent an audit.
    """
    requests = [{"name": name, "address": address.reveal()} for name, address in addresses]
    problems: dict[str, str | None] = {each["name"]: None for each in requests}

    def report(name: str, problem: str | None) -> None:
        problems[name] = None if problem == _NO_OUTCOME else problem

    async def main() -> None:
        with anyio.move_on_after(CHECK_SECONDS):
            await _call_apprise(requests, report, check_only=True)

    if requests:
        run_to_end(main)
    return problems


async def _call_apprise(
    requests: list[dict[str, str]], report: Callable[[str, str | None], object], *, check_only: bool = False
) -> None:
    """Report outcomes by name as they become clear; see ``apprise_process``. Kill the process if cancelled."""
    request = {"messages": requests, "deadline": time.monotonic() + ANSWER_SECONDS, "check_only": check_only}
    command = (sys.executable, "-P", "-m", "auditor.hooks.apprise_process")
    remaining = {each["name"] for each in requests}
    try:
        # A session of its own: Ctrl-C is for this process, which kills that one.
        process = await anyio.open_process(command, stderr=subprocess.DEVNULL, start_new_session=True)
    except OSError:
        for name in remaining:
            report(name, _NO_OUTCOME)
        return
    try:
        if process.stdin is None or process.stdout is None:  # both are pipes
            return
        with contextlib.suppress(OSError, anyio.BrokenResourceError):
            await process.stdin.send(json.dumps(request).encode())
            await process.stdin.aclose()
        text = ""
        async for part in TextReceiveStream(process.stdout):
            *lines, text = f"{text}{part}".split("\n")
            for outcome in map(_parse_outcome, lines):
                report(outcome["name"], outcome["problem"])
                remaining.discard(outcome["name"])
        for name in remaining:
            report(name, _NO_OUTCOME)
        await process.wait()
    finally:
        with anyio.CancelScope(shield=True):
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            await process.aclose()


def _parse_outcome(line: str) -> dict[str, Any]:
    outcome: dict[str, Any] = json.loads(line)
    return outcome


def read_delivered(folder: Path) -> frozenset[str]:
    """Return the lines that ``record_delivered`` wrote for a run whose hooks are still to run."""
    for name in (PENDING_HOOKS, DEFERRED_HOOKS):
        with contextlib.suppress(OSError, ValueError):
            return frozenset(read_contained(folder, name, max_bytes=MAX_RECORD_BYTES).decode().splitlines())
    return frozenset()


def record_delivered(folder: Path, lines: Iterable[str]) -> None:
    """Record which messages about a run were delivered, so that a resume does not send them again.

    Nothing is recorded if no hooks are pending, or if the folder cannot be written any more.
    """
    for name in (PENDING_HOOKS, DEFERRED_HOOKS):
        if (folder / name).is_file():
            with contextlib.suppress(AuditorError, OSError):
                replace_file(folder / name, "".join(f"{line}\n" for line in sorted(lines)).encode())
            return


def deliver(folder: Path, targets: Sequence[NotifyTarget], payload: Payload) -> dict[str, str | None]:
    """Send the messages about a run to the places that want one, and that have not received it before a kill.

    Return for each name of such a place why its message was not delivered, or None.
    """
    delivered = set(read_delivered(folder))
    due = [target for target in targets if target.wants(payload) and _line(target.name, payload) not in delivered]

    def record(name: str) -> None:
        delivered.add(_line(name, payload))
        record_delivered(folder, delivered)

    return send_messages([target.compose(payload) for target in due], record)


def _line(name: str, payload: Payload) -> str:
    return f"{name} {payload.message_id}"
