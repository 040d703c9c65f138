"""Results of many kills: counted by the harness, printed by ``make chaos``."""

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, get_args

KILLS = int(os.environ.get("AUDITOR_KILLS", "6"))
"""Number of processes to kill."""

LONG_RUN_KILLS = 100
"""Kills from which on it is the long run of ``make chaos``."""

SEED = int(os.environ.get("AUDITOR_SEED", "1"))
"""Random seed of everything except the timing of the machine."""

Phase = Literal[
    "before the folder",
    "remembering settings",
    "making the folder",
    "discovery",
    "querying",
    "released firmware",
    "sealing or verifying",
    "hooks",
    "resuming",
]
"""Phase of a process when it was killed, derived from its files: see ``KilledAudit._phase``."""

PHASES: tuple[Phase, ...] = get_args(Phase)


@dataclass(slots=True)
class Figures:
    """Sums over all audits.

    Attributes:
        kills: by phase of the process.
        audits: audits that were killed, resumed and finished.
        finished_early: processes that finished before their kill.
        devices: devices of their fleets.
        responses: complete responses: page 1 of a device, or an error about it.
        lost: devices without a line in the finished run.
        duplicate_lines: lines of devices that have one already.
        queried_twice: responses after the first one of a device.
        in_flight: responses to a process that was killed before it had written them.
        sent_too_many: requests that runs count in addition to those that arrived: in flight or reserved at a kill.
        unreadable: errors of killed runs that could not be read.
        max_in_flight: the maximum of ``in_flight`` at one kill; a process has at most ``concurrency`` requests.
    """

    kills: Counter[Phase] = field(default_factory=Counter)
    audits: int = 0
    finished_early: int = 0
    devices: int = 0
    responses: int = 0
    lost: int = 0
    duplicate_lines: int = 0
    queried_twice: int = 0
    in_flight: int = 0
    max_in_flight: int = 0
    sent_too_many: int = 0
    unreadable: list[str] = field(default_factory=list)

    def table(self, concurrency: int) -> str:
        """The figures as text, a line each."""
        kills = self.kills.total()
        rows: list[tuple[str, object]] = [
            ("kills", kills),
            *((f"  {phase}", self.kills[phase]) for phase in PHASES),
            ("processes finished before the kill", self.finished_early),
            ("audits", self.audits),
            ("devices", f"{self.devices:,}"),
            ("responses", f"{self.responses:,}"),
            ("killed runs that cannot be read", len(self.unreadable)),
            ("devices lost", self.lost),
            ("duplicate lines", self.duplicate_lines),
            ("devices queried twice", self.queried_twice),
            ("responses in flight at the kills", self.in_flight),
            ("  maximum at one kill", f"{self.max_in_flight} of {concurrency}"),
            ("requests counted, not received", self.sent_too_many),
        ]
        return "\n".join(f"{name:<34}{value!s:>14}" for name, value in rows)


def print_figures(text: str, began: float) -> None:
    """Print figures; pytest shows them with ``-s``."""
    sys.stdout.write(f"\n{text}, in {time.monotonic() - began:.0f} s\n")
