"""What platforms and networks say, as text that is fit for a line of a log. Pure."""

import re

MESSAGE_LENGTH = 300
"""Characters kept of a platform's message."""

_READ_LENGTH = 20 * MESSAGE_LENGTH
"""Characters of a platform's message that are cleaned at most: a body's worth of them would hold up every request."""


def one_line(message: str) -> str:
    """A platform's message fit for a log line.

    The gateway's answer to a wrong signature quotes its whole string to sign; that part is dropped.
    """
    if is_plain(message):  # as every request id is, which comes with every answer
        return message
    text = re.sub(r"server string to sign is.*", "", message, flags=re.IGNORECASE | re.DOTALL)[:_READ_LENGTH]
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())[:MESSAGE_LENGTH]


def is_plain(message: str) -> bool:
    """Whether a message is one word that ``one_line`` would leave as it is."""
    return len(message) <= MESSAGE_LENGTH and message.isascii() and message.isprintable() and " " not in message
