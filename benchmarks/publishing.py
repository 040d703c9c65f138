"""Wall seconds and peak memory of publishing many devices with 4 modules each to a directory, and of reading them.

python benchmarks/publishing.py [DEVICES ...]

Each size is a run of its own; a time is that of a command, with its start.
"""

import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from daily_questions import LATEST, build
from drift import measure_command

SIZES = (100_000, 1_000_000)

SETTINGS = """
[[account]]
name = "eu"
endpoint = "https://example.com/"
access_key_id = "unused"
access_key_secret = { env = "UNUSED" }
[[publish]]
name = "lake"
type = "files"
options = { to = "lake" }
"""


def measure(folder: Path, devices: int) -> None:
    run = folder / "audits" / f"{LATEST:%Y%m%dT%H%M%SZ}-nightly"
    run.parent.mkdir(parents=True)
    # In a separate process, since a command starts with the peak memory of this one.
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        pool.submit(build, run, devices, 0, LATEST).result()
    settings = folder / "nightly.toml"
    settings.write_text(SETTINGS)
    lake, copy = folder / "lake", folder / "copy"
    count = "SELECT count(*) FROM modules WHERE module_version = '1.4.0'"
    for name, arguments in (
        ("publish to a directory", ("publish", str(run), "--settings", str(settings))),
        ("publish again", ("publish", str(run), "--settings", str(settings))),
        ("fetch", ("fetch", str(lake), str(copy), "--run", run.name)),
        ("sql --dataset, a count", ("sql", "--dataset", str(lake), count, "--format", "csv")),
    ):
        seconds, peak = measure_command(*arguments)
        print(f"{devices:>12,}  {name:<26} {seconds:>8.1f} {peak:>8.0f}", flush=True)
    size = sum(path.stat().st_size for path in lake.rglob("*.parquet"))
    print(f"{devices:>12,}  {size / 1e6:,.0f} MB of Parquet", flush=True)


def main(sizes: tuple[int, ...]) -> None:
    print(f"{'devices':>12}  {'command':<26} {'seconds':>8} {'peak MB':>8}")
    for devices in sizes:
        with tempfile.TemporaryDirectory(prefix="auditor-publishing-") as temporary:
            measure(Path(temporary), devices)


if __name__ == "__main__":
    main(tuple(map(int, sys.argv[1:])) or SIZES)
