"""Puts the commands' help texts into documents, or checks that they are there as `--help` prints them.

python docs/help_texts.py [--check] DOCUMENT …
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
    """A document with every help block anew."""
    return BLOCK.sub(
        lambda found: (
            f"{found[1]}```console\n$ {found['command']} --help\n{help_of(found['command'])}\n```\n{found[3]}"
        ),
        text,
    )


def main(arguments: list[str]) -> int:
    wrong = 0
    for path in map(Path, (each for each in arguments if each != "--check")):
        text = path.read_text()
        wanted = with_help(text)
        if "--check" not in arguments:
            path.write_text(wanted)
        elif text != wanted:
            sys.stderr.write(f"{path}: a help text is not what --help prints; run `make help-texts`\n")
            wrong = 1
    return wrong


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
