"""What starts an audit each night, and then deletes old runs: a hardened systemd unit with its timer, or a crontab."""

import math
import shlex
from dataclasses import dataclass
from pathlib import Path

from auditor.text.durations import parse_duration

_SERVICE = """\
# {name}.service: an audit, started by {name}.timer. {comment}
[Unit]
Description=Inventory of the OTA module versions of an IoT fleet
Wants=network-online.target
After=network-online.target time-sync.target

[Service]
Type=oneshot
User={user}
WorkingDirectory={folder}
ExecStart={command}
# Old runs are deleted after each audit, also after one that failed.
ExecStopPost={prune}
{secrets}# A run that is stopped by the time limit, or by a restart of the machine, is resumed by the next start.
TimeoutStartSec=infinity
TimeoutStopSec=180
UMask=0027

# It reads settings and keys, writes runs, and talks to the platform: nothing else is permitted.
{state}ProtectHome={home}
ProtectSystem=strict
PrivateTmp=yes
PrivateDevices=yes
PrivateIPC=yes
PrivateUsers=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
CapabilityBoundingSet=
NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
"""

_TIMER = """\
# {name}.timer: starts {name}.service each night, and after the machine was off at that time.
[Unit]
Description=Nightly inventory of the OTA module versions of an IoT fleet

[Timer]
OnCalendar=*-*-* {time}
RandomizedDelaySec=5min
Persistent=true

[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A nightly audit.

    Attributes:
        program: path of the program ``auditor``.
        settings: path of the settings.
        runs: directory of runs, the only one that the audit writes to. It exists before the first start.
        user: user that it runs as.
        time: time of day at which it starts, such as ``02:00``, in the zone of the machine.
        duration: time after which it stops; the next one resumes it.
        keep_days: age below which runs are kept, in days.
        secret_file: file of root that systemd passes on as ``access-key-secret``; None: the settings name the place.
        name: name of the units.
        comment: what to do with the unit.
    """

    program: Path
    settings: Path
    runs: Path
    user: str
    time: str = "02:00"
    duration: str = "4h"
    keep_days: int = 30
    secret_file: Path | None = None
    name: str = "auditor"
    comment: str = "Copy both to /etc/systemd/system."

    @property
    def _words(self) -> tuple[str, ...]:
        return str(self.program), "run", str(self.settings), "--resume", "--for", self.duration

    @property
    def _prune_words(self) -> tuple[str, ...]:
        return str(self.program), "prune", str(self.runs), "--keep-days", str(self.keep_days)

    def service_unit(self) -> str:
        """Return the unit of the service."""
        state = Path("/var/lib/auditor")
        owns_state = self.runs.is_relative_to(state)
        secret = self.secret_file
        in_home = any(path.is_relative_to(home) for path in self._paths for home in ("/home", "/root"))
        return _SERVICE.format(
            name=self.name,
            comment=self.comment,
            user=self.user,
            folder=_escape(str(state if owns_state else self.runs)),
            command=" ".join(map(_quote, self._words)),
            prune=" ".join(map(_quote, self._prune_words)),
            secrets="" if secret is None else f"LoadCredential=access-key-secret:{_escape(str(secret))}\n",
            state="StateDirectory=auditor\nStateDirectoryMode=0750\nEnvironment=HOME=/var/lib/auditor\n"
            if owns_state
            else f"ReadWritePaths={_quote(str(self.runs))}\n",
            home="read-only" if in_home else "yes",
        )

    @property
    def _paths(self) -> tuple[Path, ...]:
        return self.program, self.settings, self.runs

    def timer_unit(self) -> str:
        """Return the unit of the timer."""
        return _TIMER.format(name=self.name, time=self.time)

    def crontab_lines(self) -> tuple[str, str]:
        """Return lines of the user's crontab: the audit, and what deletes old runs an hour after the audit must end.

        Each first writes the time to the log, since an error of the settings has none. If an audit ends with another
        exit code than 0, cron mails the code with its reason.
        """
        hour, minute = map(int, self.time.split(":"))
        log = shlex.quote(str(self.runs / f"{self.name}.log"))
        start = 60 * hour + minute
        prune = start + math.ceil(parse_duration(self.duration) / 60) + 60
        return (
            _crontab_line(start, f"{{ date -u; {shlex.join(self._words)}; }} >> {log} 2>&1 || tail -n 1 {log}"),
            _crontab_line(prune, f"{{ date -u; {shlex.join(self._prune_words)}; }} >> {log} 2>&1 || tail -n 1 {log}"),
        )


def _crontab_line(minutes: int, command: str) -> str:
    """Return a line that runs a command each day, a number of minutes after midnight."""
    hour, minute = divmod(minutes % (24 * 60), 60)
    escaped = command.replace("%", r"\%")  # a percent sign ends the command
    return f"{minute} {hour} * * * {escaped}"


def _escape(text: str) -> str:
    """Return a text for a value of a unit: a percent sign begins a specifier."""
    return text.replace("%", "%%")


def _quote(word: str) -> str:
    """Return a word of a command or of a list in a unit."""
    escaped = _escape(word)
    if not any(character in word for character in " \t\"'\\$;"):
        return escaped
    quoted = escaped.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$")
    return f'"{quoted}"'
