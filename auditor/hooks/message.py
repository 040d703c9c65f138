"""The message about a run that people read: what matters first, at most a screen long, and safe for chats."""

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Literal

from auditor.text.formatting import safe

Outcome = Literal["success", "warning", "failure"]

MAX_LINE_LENGTH, MAX_MESSAGE_BYTES = 500, 2_000
"""Characters of a field, and bytes of a message: WeCom rejects texts of more than 2,048 bytes."""

DEFAULT_TEMPLATE = "{verdict}\n{reason}\n{changes}\n{policy}\n{action}\n{link}\n{notes}"
"""A message's lines. The last ones are cut first, by this project and by services that limit the length."""

_ACTIVE = re.compile(r"[<@]|\](?=\()")
"""What begins a mention, a tag or the address of a link in a chat."""

_EMPTY_QUOTES = r"\g<0>''"
"""What is inserted after it into a command. Within quotes it ends them and begins new ones."""


@dataclass(frozen=True, slots=True)
class RunMessage:
    """What a message says about a run. Each field is a line, or empty.

    Attributes:
        outcome: how a service shows it, for example by a colour.
        title: the verdict in a few words.
        name: name of the audit.
        run: name of the run folder.
        verdict: the state of the run and its numbers of devices.
        reason: why it has its exit code, if that is not 0.
        changes: what changed since the previous run.
        policy: how many rules are violated, and which.
        action: what to do.
        commands: the commands for it.
        notes: warnings about the numbers, and hooks that failed.
        link: address of the report.
    """

    outcome: Outcome
    title: str
    name: str
    run: str
    verdict: str
    reason: str = ""
    changes: str = ""
    policy: str = ""
    action: str = ""
    notes: str = ""
    link: str = ""
    commands: tuple[str, ...] = ()

    def render(self, template: str | None = None) -> str:
        """Return the message: the template with its fields, without the lines that are empty then; or the verdict.

        No service accepts an empty message, which a template such as ``{reason}`` is after a run without a problem.

        A zero-width space after ``<``, ``@`` and before the address of a link prevents that a text of a device or a
        platform mentions people or becomes a link. In a command it is an empty pair of quotes, which a shell ignores.
        The link of the settings stays as it is.
        """
        texts = {key: value for key, value in asdict(self).items() if isinstance(value, str)}
        fields = {key: _disarm(_shorten(safe(text))) for key, text in texts.items()} | {"link": self.link}
        fields["action"] = _add_commands(fields["action"], self.commands)
        lines = (DEFAULT_TEMPLATE if template is None else template).format_map(fields).splitlines()
        return _cut("\n".join(line.strip() for line in lines if line.strip()) or fields["verdict"])


def _shorten(text: str) -> str:
    return text if len(text) <= MAX_LINE_LENGTH else f"{text[: MAX_LINE_LENGTH - 1]}…"


def _add_commands(action: str, commands: Iterable[str]) -> str:
    """Return what to do with its first commands: those that fit as a whole, as a part of one may do something else."""
    for number, command in enumerate(commands):
        longer = f"{action}{'; ' if number else ': '}{_ACTIVE.sub(_EMPTY_QUOTES, command)}"
        if len(longer) > MAX_LINE_LENGTH:
            break
        action = longer
    return action


def _disarm(text: str) -> str:
    return _ACTIVE.sub("\\g<0>\u200b", text)


def _cut(text: str) -> str:
    content = text.encode(errors="backslashreplace")
    if len(content) <= MAX_MESSAGE_BYTES:
        return content.decode()
    return content[: MAX_MESSAGE_BYTES - 3].decode(errors="ignore") + "…"
