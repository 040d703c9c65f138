"""A dead man's switch: a service that raises an alarm if a run does not report its end, as healthchecks.io does.

A command posts to ``ADDRESS/start``. When it ends, it posts to ``ADDRESS`` after exit code 0, to ``ADDRESS/EXIT_CODE``
after an audit that ended with another one, and to ``ADDRESS/fail`` if no audit ended: the settings are wrong, or a
signal or an error stopped the command. The body has the reason and the last lines of the log. A killed process reports
nothing, and the service notices that. See https://healthchecks.io/docs/http_api/.
"""

import threading
import uuid
from collections.abc import Sequence
from functools import partial
from urllib.parse import urlsplit

import anyio

from auditor.__about__ import VERSION
from auditor.config.hook_validation import check_webhook_url
from auditor.config.secrets import read_secret
from auditor.config.settings import SecretSource
from auditor.errors import AuditInterruptedError, UsageError, WebhookError
from auditor.hooks.http_post import PostLimits, post_body
from auditor.models import Secret

LIMITS = PostLimits(seconds=5.0, attempt_seconds=3.0)
"""Seconds that a report may take, with its retries."""

WAIT_SECONDS = 6.0
"""Seconds to wait for a report whose connection does not even fail."""

MAX_BODY_BYTES = 10_000
"""Bytes of a body: what every version of healthchecks stores of one."""

NO_OUTCOME_CODES = frozenset({UsageError.exit_code, AuditInterruptedError.exit_code})
"""Exit codes of commands in which no audit ended."""


class DeadMansSwitch:
    """Reports the start and the end of a command. Nothing that fails here changes the command."""

    def __init__(self, address: Secret) -> None:
        self._address = address
        self._run_id = str(uuid.uuid4())  # healthchecks computes durations of runs by it
        self._start: threading.Thread | None = None

    @classmethod
    def open(cls, source: SecretSource, where: str) -> "DeadMansSwitch":
        """Return the switch whose address is stored in a place; raise SettingsError if that has none."""
        address = read_secret(source, account=None, key=f"{where}: ping")
        check_webhook_url(address.reveal(), f"{where}: ping")
        return cls(address)

    def start(self) -> None:
        """Report the start, without waiting for it."""
        self._start = _start_thread(partial(self._post, "/start", "", []))

    def finish(self, exit_code: int, reason: str, lines: Sequence[str]) -> str | None:
        """Report an exit code; return why that failed, or None.

        Args:
            exit_code: exit code of the command.
            reason: why it has this exit code.
            lines: last lines of the log.
        """
        if exit_code in NO_OUTCOME_CODES:
            return self.fail(reason, lines)
        return self._report(f"/{exit_code}" if exit_code else "", reason, lines)

    def fail(self, reason: str, lines: Sequence[str]) -> str | None:
        """Report that an error or a signal stopped the command; return why that failed, or None."""
        return self._report("/fail", reason, lines)

    def log(self, text: str) -> str | None:
        """Report a text that changes nothing; return why that failed, or None."""
        return self._report("/log", text, [])

    def _report(self, path: str, reason: str, lines: Sequence[str]) -> str | None:
        if self._start is not None:
            self._start.join(WAIT_SECONDS)  # the service would take a late start for that of another run
        problems: list[str] = []
        thread = _start_thread(partial(self._post, path, _body(reason, lines), problems))
        thread.join(WAIT_SECONDS)
        if thread.is_alive():
            return f"no answer within {WAIT_SECONDS:g} s"
        return problems[0] if problems else None

    def _post(self, path: str, body: str, problems: list[str]) -> None:
        parts = urlsplit(self._address.reveal())
        query = f"{parts.query}&rid={self._run_id}" if parts.query else f"rid={self._run_id}"
        address = Secret(parts._replace(path=f"{parts.path.rstrip('/')}{path}", query=query).geturl())
        headers = {"Content-Type": "text/plain; charset=utf-8", "User-Agent": f"auditor/{VERSION}"}
        post = partial(post_body, limits=LIMITS, receiver="the dead man's switch")
        try:
            anyio.run(partial(post, address, body.encode(errors="backslashreplace"), lambda _now: headers))
        except WebhookError as error:
            problems.append(str(error))
        except Exception as error:  # noqa: BLE001  its text may contain the address
            problems.append(f"it could not be called ({type(error).__name__})")


def _start_thread(work: "partial[None]") -> threading.Thread:
    """Start work in a thread that does not delay the end of the process; signals arrive in the main thread."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def _body(reason: str, lines: Sequence[str]) -> str:
    """Return the reason, and as many of the last lines as fit."""
    kept: list[str] = []
    size = len(reason.encode(errors="backslashreplace")) + 2
    for line in reversed(lines):
        size += len(line.encode(errors="backslashreplace")) + 1
        if size > MAX_BODY_BYTES:
            break
        kept.insert(0, line)
    return "\n".join([reason[:MAX_BODY_BYTES], *(["", *kept] if kept else [])])
