"""Puts every command's help text into the README, or checks that it is there as `--help` prints it.

python docs/readme_help.py [--check] README.md
"""

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- help: (?P<command>[a-z -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def help_of(command: str) -> str:
    """What ``auditor COMMAND --help`` prints, 100 columns wide."""
    arguments = [sys.executable, "-m", *command.split(), "--help"]
    shown = subprocess.run(arguments, env=os.environ | {"COLUMNS": "100"}, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in shown.stdout.splitlines()).strip()


def with_help(text: str) -> str:
    """The README with every help block anew."""
    return BLOCK.sub(
        lambda found: (
            f"{found[1]}```console\n$ {found['command']} --help\n{help_of(found['command'])}\n```\n{found[3]}"
        ),
        text,
    )


def main(arguments: list[str]) -> int:
    path = Path(arguments[-1])
    text = path.read_text()
    wanted = with_help(text)
    if "--check" not in arguments:
        path.write_text(wanted)
        return 0
    if text != wanted:
        sys.stderr.write(f"{path}: a help text is not what --help prints; run `make readme`\n")
    return int(text != wanted)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
