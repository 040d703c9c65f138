"""The long run: ``python -m tests.fuzz.long [SECONDS [TARGET …]]`` follows the readers' branches with Atheris.

A finding is saved under ``.fuzz/``, its path is printed, and the exit code is 1;
``python -m tests.fuzz.long --again TARGET FILE`` reads it once more.
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
FOUND = Path(".fuzz")
HANGS = 30
"""Seconds for one input at most; the decoder has a far smaller limit of its own."""

GUIDED = ["auditor", "csv", "email", "gzip", "tomllib"]
"""Packages in Python whose branches lead the way; DuckDB, orjson and msgspec are not Python."""


def main() -> int:
    """Every target in a process of its own, since a reader may bring down its process."""
    if sys.argv[1:2] == ["--again"]:
        target, path = sys.argv[2:4]
        print(importlib.import_module(f"tests.fuzz.{target}").read(Path(path).read_bytes()))
        return 0
    if sys.argv[1:2] == ["--one"]:
        _fuzz(sys.argv[2], float(sys.argv[3]), Path(sys.argv[4]))
    seconds, targets = (sys.argv[1:2] or ["60"])[0], sys.argv[2:] or TARGETS
    FOUND.mkdir(exist_ok=True)
    bad = [target for target in targets if _run(target, seconds)]
    return 1 if bad else 0


def _run(target: str, seconds: str) -> int:
    with tempfile.TemporaryDirectory() as work:
        command = [sys.executable, "-m", "tests.fuzz.long", "--one", target, seconds, work]
        ended = subprocess.run(command, check=False, env={**os.environ, "TMPDIR": work}).returncode
    if ended not in {0, 1}:
        print(f"{target}: the process ended with {ended}; what it last read is in {FOUND}/{target}-*", flush=True)
    return ended


def _fuzz(target: str, seconds: float, work: Path) -> NoReturn:
    import atheris

    with atheris.instrument_imports(include=GUIDED):
        module = importlib.import_module(f"tests.fuzz.{target}")
    corpus, pieces = work / "corpus", work / "pieces"
    corpus.mkdir()
    for number, seed in enumerate(module.seeds()):
        (corpus / str(number)).write_bytes(seed)
    escaped = ("".join(f"\\x{byte:02x}" for byte in piece) for piece in module.PIECES)
    pieces.write_text("".join(f'"{piece}"\n' for piece in escaped))
    options = [
        f"-artifact_prefix={FOUND}/{target}-", f"-dict={pieces}", f"-timeout={HANGS}", "-verbosity=0",
        "-max_len=8192", "-rss_limit_mb=4096",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], _counting(target, module.read, seconds))
    atheris.Fuzz()
    raise AssertionError("Atheris ends with the process")


def _counting(target: str, read: Callable[[bytes], str], seconds: float) -> Callable[[bytes], None]:
    """Reads, counts what came of it, and ends the process when the time is up or something else came."""
    came: Counter[str] = Counter()
    began = time.monotonic()

    def one(data: bytes) -> None:
        try:
            came[read(data)] += 1
        except BaseException:  # noqa: BLE001  whatever it is, it is what was looked for
            path = FOUND / f"{target}-{hashlib.sha256(data).hexdigest()[:16]}"
            path.write_bytes(data)
            traceback.print_exc()
            _end(f"{target}: another exception after {came.total():,} executions; the input is {path}", 1)
        if (passed := time.monotonic() - began) >= seconds:
            kinds = ", ".join(f"{name} {count:,}" for name, count in came.most_common())
            rate = f"{came.total():,} executions, {came.total() / passed:,.0f}/s"
            _end(f"{target}: {rate}: {kinds}; no other exception", 0)

    return one


def _end(sentence: str, code: int) -> NoReturn:
    print(sentence, flush=True)
    sys.stderr.flush()
    os._exit(code)  # Atheris has no other way to be stopped from within; the parent removes what is left


if __name__ == "__main__":
    sys.exit(main())
