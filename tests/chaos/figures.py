"""What many kills came to: counted by the harness, printed by ``make chaos``."""

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

KILLS = int(os.environ.get("AUDITOR_KILLS", "6"))
"""How many processes are killed."""

MANY = 100
"""From so many on it is the long run of ``make chaos``."""

SEED = int(os.environ.get("AUDITOR_SEED", "1"))
"""Of everything that chance decides, but for the moments that the machine takes."""

Phase = Literal["before the folder", "making the folder", "listing", "asking", "sealing or proving", "resuming"]
"""What a process was at when it was killed, as its files tell: see ``Audit.phase``."""

PHASES: tuple[Phase, ...] = (
    "before the folder",
    "making the folder",
    "listing",
    "asking",
    "sealing or proving",
    "resuming",
)


@dataclass(slots=True)
class Figures:
    """Sums over all audits.

    Attributes:
        kills: by what the process was at.
        audits: that were killed, gone on with, and left alone in the end.
        unhurt: processes that were meant to be killed and were done before.
        devices: of their fleets.
        answers: page 1 of a device, or a refusal of it, given whole by the platform.
        lost: devices that are in no line of a run in the end.
        written_twice: lines about a device that has one already.
        asked_twice: answers beyond the first that a device got.
        in_flight: answers that were given to a process which was killed before it had written them.
        unreadable: what was said of killed runs that could not be read as they were left.
        most_in_flight: the most of them at one kill; a process has ``at_once`` requests in flight at most.
    """

    kills: Counter[Phase] = field(default_factory=Counter)
    audits: int = 0
    unhurt: int = 0
    devices: int = 0
    answers: int = 0
    lost: int = 0
    written_twice: int = 0
    asked_twice: int = 0
    in_flight: int = 0
    most_in_flight: int = 0
    unreadable: list[str] = field(default_factory=list)

    def table(self, at_once: int) -> str:
        """The figures for people, a line each."""
        kills = self.kills.total()
        rows: list[tuple[str, object]] = [
            ("kills", kills),
            *((f"  {phase}", self.kills[phase]) for phase in PHASES),
            ("processes done before their kill", self.unhurt),
            ("audits", self.audits),
            ("devices", f"{self.devices:,}"),
            ("answers", f"{self.answers:,}"),
            ("killed runs that cannot be read", len(self.unreadable)),
            ("devices lost", self.lost),
            ("devices written twice", self.written_twice),
            ("devices asked twice", self.asked_twice),
            ("answers in flight at the kills", self.in_flight),
            ("  the most at one kill", f"{self.most_in_flight} of {at_once} at once"),
        ]
        return "\n".join(f"{name:<34}{value!s:>14}" for name, value in rows)


def show(text: str, began: float) -> None:
    """Tells what was measured, for whoever runs pytest with ``-s``."""
    sys.stdout.write(f"\n{text}, in {time.monotonic() - began:.0f} s\n")
