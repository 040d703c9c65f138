"""Write the commands' help texts into documents, or check that documents contain what `--help` prints.

python docs/help_texts.py [--check] DOCUMENT …
"""

import os
import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"(<!-- help: (?P<command>[a-z -]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def read_help(command: str) -> str:
    """Return the output of ``auditor COMMAND --help``, 100 columns wide."""
    arguments = [sys.executable, "-m", *command.split(), "--help"]
    shown = subprocess.run(arguments, env=os.environ | {"COLUMNS": "100"}, capture_output=True, text=True, check=True)
    return "\n".join(line.rstrip() for line in shown.stdout.splitlines()).strip()


def replace_help_blocks(text: str) -> str:
    """Return a document with current help blocks."""
    return BLOCK.sub(
        lambda found: (
            f"{found[1]}```console\n$ {found['command']} --help\n{read_help(found['command'])}\n```\n{found[3]}"
        ),
        text,
    )


def main(arguments: list[str]) -> int:
    exit_code = 0
    for path in map(Path, (each for each in arguments if each != "--check")):
        text = path.read_text()
        current = replace_help_blocks(text)
        if "--check" not in arguments:
            path.write_text(current)
        elif text != current:
            sys.stderr.write(f"{path}: a help text differs from --help; run `make help-texts`\n")
            exit_code = 1
    return exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
