"""Write the manual page and the shell completions, from the commands themselves, to build/share."""

import io
import re
from pathlib import Path
from typing import Literal

from rich.console import Console

from auditor.__about__ import VERSION
from auditor.cli.app import app

SHARE = Path(__file__).parents[1] / "build" / "share"

COMPLETIONS: dict[Literal["bash", "zsh", "fish"], str] = {
    "bash": "bash-completion/completions/auditor",
    "zsh": "zsh/site-functions/_auditor",
    "fish": "fish/vendor_completions.d/auditor.fish",
}

FILES = r"""
.SH FILES
.TP
.I audits/
Directory of runs; each is a folder with run.json, devices.parquet, modules.parquet and inventory.csv.
.TP
.I nightly.toml
Settings of an audit:
.B auditor init
writes them, and
.B auditor config schema
prints their schema.
"""


def read_help(*command: str) -> str:
    """Return the help of a command, as wide as a manual page."""
    shown = io.StringIO()
    app.help_print(command, console=Console(file=shown, width=72, no_color=True))
    return "\n".join(line.rstrip() for line in shown.getvalue().strip().splitlines())


def literal(text: str) -> str:
    """Return a text for roff: no line is a request, and no character is a command."""
    escaped = text.replace("\\", r"\e").replace("-", r"\-").replace("'", r"\(aq").replace("`", r"\(ga")
    return "\n".join(re.sub(r"^([.'])", r"\&\1", line) for line in escaped.splitlines())


def manual_page() -> str:
    """Return the manual page auditor(1)."""
    commands = [name for name in app if not name.startswith("-")]
    sections = [
        f'.TH AUDITOR 1 "" "auditor {VERSION}" "User Commands"',
        ".SH NAME\nauditor \\- report which version of which OTA module every device of an IoT fleet runs",
        ".SH SYNOPSIS\n.B auditor\n.I COMMAND\n.RI [ OPTION ...]\n.RI [ ARGUMENT ...]",
        f".SH DESCRIPTION\n.nf\n{literal(read_help())}\n.fi",
        ".SH COMMANDS",
        *(f".SS auditor {literal(name)}\n.nf\n{literal(read_help(name))}\n.fi" for name in commands),
    ]
    return "\n".join(sections) + FILES


def main() -> None:
    for shell, name in COMPLETIONS.items():
        write(SHARE / name, app.generate_completion(shell=shell))
    write(SHARE / "man" / "man1" / "auditor.1", manual_page())


def write(path: Path, text: str) -> None:
    """Write a generated file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
