"""Coverage-guided fuzzing with Atheris: ``python -m tests.fuzz.long [SECONDS [TARGET …]]``.

A finding is saved under ``.fuzz/``, its path is printed, and the exit code is 1. Reproduce it with
``python -m tests.fuzz.long --again TARGET FILE``.
"""

import hashlib
import importlib
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

TARGETS = ("decoder", "fleets", "settings", "run_folders")
RESULTS_DIRECTORY = Path(".fuzz")
MAX_SECONDS = 30
"""Seconds for one input; the decoder has a much lower limit of its own."""

INSTRUMENTED = ["auditor", "csv", "email", "gzip", "tomllib"]
"""Packages whose coverage guides the fuzzer; DuckDB, orjson and msgspec are not Python."""


def main() -> int:
    """Fuzz every target in a process of its own, because a reader may crash it."""
    if sys.argv[1:2] == ["--again"]:
        target, path = sys.argv[2:4]
        print(importlib.import_module(f"tests.fuzz.{target}").read(Path(path).read_bytes()))
        return 0
    if sys.argv[1:2] == ["--one"]:
        _fuzz(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
    seconds, targets = (sys.argv[1:2] or ["60"])[0], sys.argv[2:] or TARGETS
    RESULTS_DIRECTORY.mkdir(exist_ok=True)
    failed = [target for target in targets if _run(target, seconds)]
    return 1 if failed else 0


def _run(target: str, seconds: str) -> int:
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "tests.fuzz.long", "--one", target, seconds, work]
        ended = subprocess.run(command, check=False, env={**os.environ, "TMPDIR": work}).returncode
    if ended not in {0, 1}:
        print(
            f"{target}: the process ended with {ended}; its last input is in {RESULTS_DIRECTORY}/{target}-*",
            flush=True,
        )
    return ended


def _fuzz(target: str, seconds: float, work: Path) -> NoReturn:
    import atheris

    with atheris.instrument_imports(include=INSTRUMENTED):
        module = importlib.import_module(f"tests.fuzz.{target}")
    corpus, dictionary = work / "corpus", work / "dictionary"
    corpus.mkdir()
    for number, seed in enumerate(module.seeds()):
        (corpus / str(number)).write_bytes(seed)
    escaped = ("".join(f"\\x{byte:02x}" for byte in piece) for piece in module.FRAGMENTS)
    dictionary.write_text("".join(f'"{piece}"\n' for piece in escaped))
    options = [
        f"-artifact_prefix={RESULTS_DIRECTORY}/{target}-", f"-dict={dictionary}", f"-timeout={MAX_SECONDS}", "-verbosity=0",
        "-max_len=8192", "-rss_limit_mb=4096",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], _counting(target, module.read, seconds))
    atheris.Fuzz()
    raise AssertionError("Atheris ends with the process")


def _counting(target: str, read: Callable[[bytes], str], seconds: float) -> Callable[[bytes], None]:
    """Count the outcomes, and end the process when the time is over or an unexpected exception was raised."""
    outcomes: Counter[str] = Counter()
    began = time.monotonic()

    def one(data: bytes) -> None:
        try:
            outcomes[read(data)] += 1
        except BaseException:  # noqa: BLE001  any exception is a finding
            path = RESULTS_DIRECTORY / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            traceback.print_exc()
            _end(f"{target}: unexpected exception after {outcomes.total():,} executions; the input is {path}", 1)
        if (passed := time.monotonic() - began) >= seconds:
            kinds = ", ".join(f"{name} {count:,}" for name, count in outcomes.most_common())
            rate = f"{outcomes.total():,} executions, {outcomes.total() / passed:,.0f}/s"
            _end(f"{target}: {rate}: {kinds}; no unexpected exception", 0)

    return one


def _end(sentence: str, code: int) -> NoReturn:
    print(sentence, flush=True)
    sys.stderr.flush()
    os._exit(code)  # Atheris cannot be stopped from within otherwise; the parent process removes the files


if __name__ == "__main__":
    sys.exit(main())
