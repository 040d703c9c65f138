"""Random mutations of everything that commands read: ``python -m tests.mutations.long [MUTATIONS | KIND:MUTATIONS …]``.

``MUTATIONS`` is how many of run folders, and a tenth of the other kinds; of one kind, how many of it, or
their numbers, such as ``fleets:7-9,500-999``. An interrupt ends a kind early.
Each mutation has a number, from which it can be made again: ``python -m tests.mutations.long --again KIND NUMBER …``
prints its command and how it ended, and keeps its files. With findings the exit code is 1.
"""

import gc
import importlib
import os
import pkgutil
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import auditor
from tests.mutations.kinds import KINDS
from tests.mutations.material import Material
from tests.mutations.sandbox import Ended, Sandbox

RUN_FOLDERS = 10_000
"""Mutations of run folders, unless the command line says otherwise."""

LIBRARIES = (
    "jinja2",
    "xlsxwriter",
    "redis.asyncio",
    "uvloop",
    "rich.progress",
    "rich.live",
    "anyio._backends._asyncio",
    "pytz",
)
"""What commands import when they need it."""

VERBOSE = "AUDITOR_MUTATIONS_VERBOSE" in os.environ
"""Whether to print every command."""

FINDINGS = Path(".mutations")


def main() -> int:
    """Run mutations of every kind, or those that the arguments name."""
    arguments = sys.argv[1:]
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell's background jobs ignore the first
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="auditor-mutations-", ignore_cleanup_errors=True) as work:
        warm_up()
        sandbox = Sandbox(Path(work))
        with Material(Path(work), sandbox) as material:
            if arguments[:1] == ["--again"]:
                return max(_repeat(material, arguments[1], int(number)) for number in arguments[2:])
            failed = sum(run_kind(material, kind, numbers) for kind, numbers in _parse(arguments))
    return 1 if failed else 0


def _parse(arguments: list[str]) -> Iterator[tuple[str, range]]:
    """Yield each kind and the numbers of its mutations."""
    if not arguments or arguments[0].isdecimal():
        total = int(arguments[0]) if arguments else RUN_FOLDERS
        for kind in KINDS:
            yield kind, range(total if kind == "run_folders" else max(1, total // 10))
        return
    for kind, _, numbers in (each.partition(":") for each in arguments):
        if numbers.isdecimal():
            yield kind, range(int(numbers))
            continue
        for part in numbers.split(","):
            first, _, last = part.partition("-")
            yield kind, range(int(first), int(last or first) + 1)


def warm_up() -> None:
    """Import everything, so that a forked process starts immediately."""
    for module in pkgutil.walk_packages(auditor.__path__, "auditor."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in LIBRARIES:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    gc.freeze()


def run_kind(material: Material, kind: str, numbers: Iterable[int]) -> int:
    """Run mutations of a kind, print findings and figures, and return the number of findings."""
    began = time.monotonic()
    codes: Counter[int] = Counter()
    slowest, largest, findings = (0.0, -1), (0, -1), 0
    for number in numbers:
        try:
            case = KINDS[kind](material, number)
            ended = material.sandbox.run(case)
        except KeyboardInterrupt:
            break
        codes[ended.exit_code] += 1
        slowest, largest = max(slowest, (ended.seconds, number)), max(largest, (ended.memory, number))
        if ended.findings or VERBOSE:
            findings += bool(ended.findings)
            print(f"{kind} {number}: {case.what}\n  auditor {' '.join(case.arguments)}", flush=True)
            _print_findings(ended)
    ends = ", ".join(f"{count:,} with {code}" for code, count in sorted(codes.items()))
    print(
        f"{kind}: {codes.total():,} mutations in {time.monotonic() - began:,.0f} s: {ends}; slowest {slowest[0]:.1f} s (number {slowest[1]}), "
        f"largest {largest[0] / 1e6:,.0f} MB (number {largest[1]}); {findings} findings",
        flush=True,
    )
    return findings


def _print_findings(ended: Ended) -> None:
    for finding in ended.findings:
        print(f"  FINDING: {finding}")
    print("".join(f"    {line}\n" for line in ended.error_output[-3_000:].splitlines()[-25:]), flush=True)


def _repeat(material: Material, kind: str, number: int) -> int:
    case = KINDS[kind](material, number)
    kept = FINDINGS / f"{kind}-{number}"
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(exist_ok=True)
    shutil.move(
        shutil.copytree(
            material.sandbox.folder, material.sandbox.folder.with_name("kept"), symlinks=True, copy_function=_copy
        ),
        kept,
    )
    ended = material.sandbox.run(case)
    print(f"{kind} {number}: {case.what}\n  auditor {' '.join(case.arguments)}\n  files before: {kept}")
    print(
        f"  exit code {ended.exit_code} after {ended.seconds:.1f} s, {ended.waited:.1f} s elapsed, {ended.memory / 1e6:,.0f} MB"
    )
    _print_findings(ended)
    return 1 if ended.findings else 0


def _copy(source: str, target: str) -> str:
    """Copy a file; what is none is left away."""
    if Path(source).is_file() and Path(source).stat().st_size < 1 << 30:
        shutil.copy2(source, target)
    return target


if __name__ == "__main__":
    exit_code = main()
    sys.stdout.flush()
    os._exit(exit_code)  # libraries complain about what gc.freeze keeps
