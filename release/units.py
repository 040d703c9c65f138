"""Write the units of deploy/systemd; --check compares them instead.

The same code writes those of `auditor init --schedule systemd`, for the paths that it is given.
"""

import sys
from pathlib import Path

from auditor.scaffold.schedule import Schedule

FOLDER = Path(__file__).parents[1] / "deploy" / "systemd"

USER = """\
# A user without a password, and its home: systemd-sysusers deploy/systemd/auditor.conf
u auditor - "Inventory of OTA module versions" /var/lib/auditor
"""

COMMENT = """\
Set up, as root:
#   install -m 644 auditor.conf /etc/sysusers.d/ && systemd-sysusers
#   install -m 644 auditor.service auditor.timer /etc/systemd/system/
#   install -D -m 600 /dev/stdin /etc/auditor/access-key-secret    # then in /etc/auditor/nightly.toml:
#       directory = "/var/lib/auditor/audits"
#       access_key_secret = { command = ["systemd-creds", "cat", "access-key-secret"] }
#   systemctl daemon-reload && systemctl enable --now auditor.timer"""


def files() -> dict[str, str]:
    """Return the content of each file by its name."""
    schedule = Schedule(
        program=Path("/opt/auditor/bin/auditor"),
        settings=Path("/etc/auditor/nightly.toml"),
        runs=Path("/var/lib/auditor/audits"),
        user="auditor",
        secret_file=Path("/etc/auditor/access-key-secret"),
        comment=COMMENT,
    )
    return {
        "auditor.service": schedule.service_unit(),
        "auditor.timer": schedule.timer_unit(),
        "auditor.conf": USER,
    }


def main(arguments: list[str]) -> int:
    exit_code = 0
    for name, text in files().items():
        path = FOLDER / name
        if "--check" not in arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"{path}: differs from auditor/scaffold/schedule.py; run `make units`\n")
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
