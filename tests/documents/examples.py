"""The examples of a document, run in a workspace: commands, settings, rules, programs.

A line of a console block that begins with ``$`` is a command. Lines below it are its output, of both streams: they are
compared with what it prints. A line ``…`` stands for any lines, and ``…`` within a line for any text. Times, durations
and rates may differ. ``<!-- exit 4 -->`` before a block is the exit code of its commands; otherwise it is 0. A comment
that begins with ``settings`` has tables that are added to the settings of the workspace. ``<!-- not run: REASON -->``
before a block: its commands need what a test cannot have, so only their flags are checked.
"""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import Any

from sybil import Example, Region
from sybil.document import Document
from sybil.parsers.markdown import CodeBlockParser
from sybil.parsers.markdown.lexers import DirectiveInHTMLCommentLexer

from auditor.cli.app import app
from auditor.config.loader import parse_settings
from auditor.config.settings import Account, Settings
from auditor.policy.loader import load_policy
from tests import forked
from tests.documents.build_workspace import SECRETS

ROOT = Path(__file__).parents[2]
ENVIRONMENT = SECRETS | {"COLUMNS": "120", "NO_COLOR": "1", "TERM": "dumb"}
SHELL = re.compile(r"[|&;<>]|\$\(|\$[A-Z]|^\w+=|^export ")
"""What a shell has to interpret."""

STOP_JOBS = "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"
WAIT_FOR_PLATFORM = " until ls */simulated.toml >/dev/null 2>&1; do sleep 0.1; done"
"""A person needs longer to type the next command than a platform needs to start."""

ELSEWHERE = {
    "node_exporter": "a server of its own, see tests/deploy",
    "sbatch": "Slurm, see tests/deploy",
    "pipx": "installs from a registry",
    "uv": "installs from a registry",
    "pip": "installs from a registry",
    "systemctl": "changes the machine",
    "systemd-analyze": "see tests/deploy",
    "docker": "see tests/deploy",
    "python": "a benchmark",
    "curl": "a server of its own",
    "psql": "a server of its own",
    "sudo": "changes the machine",
    "git": "the repository",
}
"""Other programs that documents call, and why their lines are not run here."""

UNSTABLE = (
    (re.compile(r"\d{8}T\d{6}Z"), "RUN"),
    (re.compile(r"http://127\.0\.0\.1:\d+/?"), "ENDPOINT"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "DATE"),
    (re.compile(r"\b\d+:\d\d(:\d\d)?\b"), "TIME"),
    (re.compile(r"\b[\d.,]+ (s|ms|min|h|days?|kB|MB)\b"), "N"),
    (re.compile(r"\b[\d.,]+/s\b"), "RATE"),
    (re.compile(r"[─━╸╺]+"), "LINE"),
    (re.compile(r"[ \t]+"), " "),
)


@dataclass
class Command:
    """A command of a console block.

    Attributes:
        text: the line, without its prompt.
        output: lines below it.
    """

    text: str
    output: list[str]


def read_commands(block: str) -> Iterator[Command]:
    """Yield the commands of a console block. A quoted text may continue on further lines."""
    command: Command | None = None
    for line in block.splitlines():
        if line.startswith("$ "):
            if command is not None:
                yield command
            command = Command(line[2:], [])
        elif command is None:
            raise AssertionError(f"output before the first command: {line}")
        elif not command.output and not is_complete(command.text):
            command.text += f"\n{line}"
        else:
            command.output.append(line)
    if command is not None:
        yield command


def is_complete(text: str) -> bool:
    """Return whether no quote of a command is open."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith("\\")


def normalize(line: str) -> str:
    """Return a line of output without what differs from run to run."""
    for pattern, text in UNSTABLE:
        line = pattern.sub(text, line)
    return line.strip()


def matches(expected: list[str], printed: str) -> bool:
    """Return whether a command printed the documented output."""
    lines = [line for line in map(normalize, expected) if line]
    pattern = "".join(
        r"(?:.*\n)*?" if line == "…" else ".*?".join(map(re.escape, line.split("…"))) + r"\n" for line in lines
    )
    found = "".join(f"{line}\n" for line in map(normalize, printed.splitlines()) if line)
    return re.fullmatch(pattern, found) is not None


@cache
def make_targets() -> frozenset[str]:
    """Return the targets of the Makefile."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    benches = re.search(r"BENCHES := \$\(addprefix bench-,(.*?)\)", text, re.DOTALL)
    named = re.findall(r"^([.\w/-]+):", text, re.MULTILINE)
    return frozenset(named) | {f"bench-{name}" for name in re.findall(r"\w+", benches[1] if benches else "")}


@cache
def extras() -> frozenset[str]:
    """Return the extras of the package."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return frozenset(project["project"]["optional-dependencies"])


class Examples:
    """The examples of documents, and the workspace in which they run.

    Attributes:
        problems: what is wrong, one text each.
        report: called with a command, its exit code and what it printed, if that is not as documented.
    """

    def __init__(self, folder: Path, report: Callable[[Example, Command, str], None] | None = None) -> None:
        self.folder, self.problems = folder, list[str]()
        self.count = 0
        self._report = report
        self._environment = os.environ | ENVIRONMENT | {"PATH": f"{folder / '.bin'}:{os.environ['PATH']}"}
        shim = folder / ".bin" / "auditor"
        shim.parent.mkdir(exist_ok=True)
        shim.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT} exec {sys.executable} -m auditor "$@"\n')
        shim.chmod(0o755)

    def run(self, path: Path) -> None:
        """Run the examples of a document."""
        evaluators: dict[str, Callable[[Example], None]] = {
            "console": self.run_console,
            "toml": self.read_toml,
            "json": lambda example: json.loads(example.parsed),
            "crontab": self.read_crontab,
            "ini": self.read_unit,
            "python": self.run_python,
        }
        parsers: list[Any] = [CodeBlockParser(language, self._checked(each)) for language, each in evaluators.items()]
        parsers.append(self._find_settings)
        for example in Document.parse(str(path), *parsers).examples():
            self.count += 1
            example.evaluate()

    def _find_settings(self, document: Document) -> Iterator[Region]:
        for region in DirectiveInHTMLCommentLexer("settings")(document):
            yield Region(region.start, region.end, str(region.lexemes["source"]), self.add_settings)

    def add_settings(self, example: Example) -> None:
        """Add tables to the settings of the workspace."""
        with (self.folder / "nightly.toml").open("a", encoding="utf-8") as settings:
            settings.write(f"\n{example.parsed}")

    def _checked(self, evaluate: Callable[[Example], None]) -> Callable[[Example], None]:
        def checked(example: Example) -> None:
            try:
                evaluate(example)
            except Exception as error:  # noqa: BLE001  all problems of a document are reported together
                self._fail(example, f"{type(error).__name__}: {error}")

        return checked

    def _fail(self, example: Example, problem: str) -> None:
        self.problems.append(f"{Path(example.path).name}:{example.line}: {problem}")

    def run_console(self, example: Example) -> None:
        """Run the commands of a block; in one shell, if one of them needs a shell."""
        before = example.document.text[: example.start].rstrip().splitlines()[-1:]
        note = re.fullmatch(r"<!-- exit (\d+) -->", before[0]) if before else None
        commands = list(read_commands(example.parsed))
        if before and re.fullmatch(r"<!-- not run: .+ -->", before[0]):
            for command in commands:
                self.check_words(example, without_comment(command.text))
            return
        codes = {0, int(note[1])} if note else {0}
        texts = [without_comment(each.text) for each in commands]
        if any(SHELL.search(unquoted(text)) for text in texts):
            elsewhere = [text for text in texts if shlex.split(text)[0] in {"make", *ELSEWHERE}]
            for text in elsewhere:
                self.check_words(example, text)
            texts = [text for text in texts if text not in elsewhere]
            whole = Command("\n".join(texts), [line for each in commands for line in each.output])
            script = "\n".join(
                [STOP_JOBS, *(text + WAIT_FOR_PLATFORM if text.endswith("&") else text for text in texts)]
            )
            done = subprocess.run(
                ["bash", "-e", "-c", script], cwd=self.folder, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120, check=False,
            )  # fmt: skip
            found = [self._check(example, whole, done.returncode, done.stdout, codes)]
        else:
            found = [self.run_command(example, each, codes) for each in commands]
        if note and int(note[1]) not in found:
            self._fail(example, f"no command ends with {note[1]}")

    def run_command(self, example: Example, command: Command, codes: set[int]) -> int:
        """Run one command without a shell, and return its exit code."""
        program, *words = shlex.split(command.text, comments=True)
        if program == "auditor":
            reader, writer = os.pipe()
            with Path(os.devnull).open() as nothing, os.fdopen(reader, encoding="utf-8") as output:
                process = forked.start(
                    *words, cwd=self.folder, streams=[nothing.fileno(), writer, writer], env=self._environment
                )
                os.close(writer)
                printed = output.read()
            return self._check(example, command, process.wait(120), printed, codes)
        if program == "cp":
            subprocess.run([program, *words], cwd=self.folder, check=True)
            return 0
        self.check_words(example, command.text)
        if program not in {"make", *ELSEWHERE}:
            self._fail(example, f"{program} is neither run nor listed in ELSEWHERE")
        return 0

    def check_words(self, example: Example, text: str) -> None:
        """Check the words of a command that is not run: flags, targets and extras exist."""
        program, *words = shlex.split(text, comments=True)
        words = list(takewhile(lambda word: not re.match(r"\d*[<>|&]", word), words))
        if program == "auditor":
            app.parse_args(words, exit_on_error=False, print_error=False)
        unknown = [word for word in words if "=" not in word and word not in make_targets()]
        if program == "make" and unknown:
            self._fail(example, f"the Makefile has no {', '.join(unknown)}")
        for names in re.findall(r"pip install '.*\[([\w,]+)\]", text):
            if missing := set(names.split(",")) - extras():
                self._fail(example, f"pyproject.toml has no extra {', '.join(missing)}")

    def _check(self, example: Example, command: Command, code: int, printed: str, codes: set[int]) -> int:
        if code not in codes:
            self._fail(example, f"$ {command.text}\nexit {code}:\n{printed}")
        elif command.output and not matches(command.output, printed):
            self._fail(example, f"$ {command.text}\nprints:\n{printed}")
            if self._report is not None:
                self._report(example, command, printed)
        return code

    def read_toml(self, example: Example) -> None:
        """Check settings, a part of them, or a policy."""
        table = tomllib.loads(example.parsed)
        if "rule" in table:
            (self.folder / "example-rules.toml").write_text(example.parsed)
            load_policy(self.folder / "example-rules.toml")
        else:
            sharing = table.get("quota_sharing")
            if isinstance(sharing, dict) and "directory" in sharing:
                sharing["directory"] = str(self.folder)  # it must exist
            parse_settings(complete(table), folder=self.folder)

    def read_crontab(self, example: Example) -> None:
        """Check the commands of a crontab."""
        for line in example.parsed.splitlines():
            if line and not line.startswith(("#", "PATH=", "MAILTO=")):
                *_, command = line.split(maxsplit=6)
                self._parse_command(command.partition("; } >>")[0].removeprefix("{ date -u; "))

    def read_unit(self, example: Example) -> None:
        """Check the commands of a systemd unit."""
        for command in re.findall(r"^Exec\w+=(.*)$", example.parsed, re.MULTILINE):
            self._parse_command(command)

    def _parse_command(self, text: str) -> None:
        words = shlex.split(text)
        assert Path(words[0]).name == "auditor", text
        app.parse_args(words[1:], exit_on_error=False, print_error=False)

    def run_python(self, example: Example) -> None:
        """Run a program, or compile a part of one, which uses names that it does not define."""
        compile(example.parsed, f"{example.path}:{example.line}", "exec")
        if "import auditor" in example.parsed and "dlt" not in example.parsed:
            environment = self._environment | {"PYTHONPATH": str(ROOT)}
            done = subprocess.run(
                [sys.executable, "-c", example.parsed], cwd=self.folder, env=environment, capture_output=True, text=True,
                timeout=120, check=False,
            )  # fmt: skip
            if done.returncode:
                self._fail(example, done.stderr)


def without_comment(text: str) -> str:
    """Return a command without the comment at its end."""
    return re.sub(r"\s+#\s.*$", "", text)


def unquoted(text: str) -> str:
    """Return a command without its quoted parts."""
    return re.sub(r"'[^']*'|\"[^\"]*\"", "", text)


ACCOUNT = {
    "name": "eu", "endpoint": "https://iot.example:8686/", "access_key_id": "id", "access_key_secret": {"env": "EU_KEY_SECRET"},
}  # fmt: skip


def complete(table: dict[str, Any]) -> dict[str, Any]:
    """Return complete settings with a part of them: keys of an account, or keys of the file."""
    fields = set(Settings.__struct_fields__)
    of_file = {key: value for key, value in table.items() if key in fields and key != "account"}
    of_account = {key: value for key, value in table.items() if key not in fields}
    if unknown := set(of_account) - set(Account.__struct_fields__):
        raise AssertionError(f"no settings have {', '.join(unknown)}")
    named = table.get("account", [{}])
    accounts = [_complete_account(each | of_account) for each in (named if isinstance(named, list) else [named])]
    return {**of_file, "account": accounts}


def _complete_account(part: dict[str, Any]) -> dict[str, Any]:
    account = ACCOUNT | part
    if "credentials" in part:
        del account["access_key_id"], account["access_key_secret"]
    if part.get("read") in {"index", "auto"} and "fleet" not in part:
        account["fleet"] = {"products": "all"}
    if account.get("dialect") == "alibaba" or part.get("credentials") or "read" in part:
        account |= {"dialect": "alibaba", "region_id": part.get("region_id", "cn-shanghai")}
    return account
