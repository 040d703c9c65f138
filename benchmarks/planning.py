"""Time and memory of the selection, by strategy: everything but the queries.

python benchmarks/planning.py [--devices N] [--modules N]

DuckDB creates a run folder of the given size, and a journal of as many states, of which 5% show a later connection.
Each strategy then selects devices in its own process, as an audit does. It reads the results of the run and the states,
joins and ranks the fleet, and writes the plan and the carried results. `auditor plan` is measured as a command.
"""

import argparse
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import duckdb
import orjson

DONE = """
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""

BASELINE = """
from auditor.selection.baseline import write_baseline
write_baseline(run, work / "baseline.parquet")
baseline = work / "baseline.parquet"
"""

MERGE = """
from auditor.selection.selection_files import count_selected, merge_account
for path in (files.selected, files.carried):
    if path.exists():
        merge_account(path, work / f"merged-{path.name}", "eu", work / f"new-{path.name}")
selected, carried = count_selected(files.selected, files.carried)
print(sum(selected.values()), sum(carried.values()))
"""

BEGIN = """
import sys
from pathlib import Path
from auditor.selection.selection_files import SelectionFiles
from auditor.selection.ranking import SampleSpec, SelectionBudget
from auditor.selection.change_detection import IncrementalRule
from auditor.selection.selector import DeviceSelector
run, work = map(Path, sys.argv[1:])
files = SelectionFiles(*(work / f"{name}.parquet" for name in ("queue", "plan", "carried", "connections")))
selector = DeviceSelector(work, "eu", run / "fleet.parquet", include_never_activated=True, seed=1)
"""

INCREMENTAL = """
from auditor.selection.connectivity import write_states
rule = IncrementalRule("{rule}", None, 0.01)
selector.write_state_queries(baseline, rule, work / "state-queries.parquet")
write_states(run / "states.jsonl", work / "states.parquet")
selector.select_changed(work / "states.parquet", rule, lambda: {budget}, files)
"""

ROLLING = "selector.select_rolling(baseline, lambda: {budget}, files)\n"

SAMPLE = "selector.select_sample(files, {sample})\n"


def strategies(devices: int) -> dict[str, str]:
    third = f"SelectionBudget({devices // 3}, 0.9, {devices // 3})"
    timed = "SelectionBudget(None, 0.9, None)"
    return {
        "incremental, strict": BASELINE + INCREMENTAL.format(rule="strict", budget="None"),
        "incremental, reconnected": BASELINE + INCREMENTAL.format(rule="reconnected", budget="None"),
        "incremental, budget": BASELINE + INCREMENTAL.format(rule="strict", budget=third),
        "rolling, calls": BASELINE + ROLLING.format(budget=third),
        "rolling, time": BASELINE + ROLLING.format(budget=timed),
        "sample of 10,000": SAMPLE.format(sample="SampleSpec(10_000)"),
        "precision, fleet": SAMPLE.format(sample="SampleSpec(12_205)"),
        "precision, product": SAMPLE.format(sample="SampleSpec(None, equal_per_product=True)"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--devices", type=int, default=10_000_000)
    parser.add_argument("--modules", type=int, choices=range(1, 9), default=4)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="auditor-planning-") as temporary:
        run = Path(temporary, "audits", "20261123T020000Z-planned")
        run.mkdir(parents=True)
        # In a separate process, since a command starts with the peak memory of this one.
        process = multiprocessing.get_context("spawn").Process(
            target=make_run, args=(run, options.devices, options.modules)
        )
        process.start()
        process.join()
        print(f"{options.devices:,} devices with {options.modules} modules each, on {os.cpu_count()} cores")
        print(f"{'strategy':<26}{'seconds':>9}{'MB':>8}{'selected':>13}{'carried':>13}")
        for name, steps in strategies(options.devices).items():
            with tempfile.TemporaryDirectory(dir=temporary) as work:
                seconds, output = timed(["-c", BEGIN + steps + MERGE + DONE, str(run), work])
            selected, carried, peak = output.split()
            print(f"{name:<26}{seconds:>9.1f}{float(peak):>8.0f}{int(selected):>13,}{int(carried):>13,}", flush=True)
        before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        seconds, _ = timed(["-m", "auditor", "plan", str(settings(Path(temporary))), "--window", "8h"], fails=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
        peak = f"{after / 1024:.0f}" if after > before else f"<{before / 1024:.0f}"
        print(f"{'auditor plan':<26}{seconds:>9.1f}{peak:>8}")


def timed(arguments: list[str], *, fails: bool = False) -> tuple[float, str]:
    """Return the seconds that a Python process takes, and its output."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, *arguments], check=not fails, stdout=subprocess.PIPE, text=True)
    return time.perf_counter() - started, done.stdout


def settings(folder: Path) -> Path:
    database = duckdb.connect()
    run = next((folder / "audits").iterdir())
    fleet, csv = run / "fleet.parquet", folder / "fleet.csv"
    database.execute(f"COPY (SELECT product_key, device_name FROM '{fleet}') TO '{csv}' (FORMAT csv, HEADER)")
    (folder / "secret").write_text("x")
    path = folder / "planned.toml"
    path.write_text(
        f'name = "planned"\ndirectory = "{folder / "audits"}"\n[[account]]\nname = "eu"\n'
        'endpoint = "https://127.0.0.1:1/"\naccess_key_id = "x"\naccess_key_secret = { file = "secret" }\n'
        'fleet = { file = "fleet.csv" }\n'
    )
    return path


def make_run(run: Path, devices: int, modules: int) -> None:
    """Make the files of a run folder that a selection reads, and a journal of states."""
    database = duckdb.connect()
    database.execute("SET threads = 2; SET memory_limit = '4GB'")
    fleet = run / "fleet.parquet"
    names = "'k1h9drZbl' || (i % 7) AS product_key, 'dev-' || lpad(((i * 7919) % $n)::VARCHAR, 9, '0') AS device_name"
    database.execute(
        f"COPY (SELECT i AS ordinal, 'eu' AS account, {names.replace('$n', str(devices))}, NULL::VARCHAR AS iot_id, "
        "NULL::VARCHAR AS device_status, NULL::TIMESTAMP AS utc_create, NULL::TIMESTAMP AS utc_modified "
        f"FROM range({devices}) t(i)) TO '{fleet}' (FORMAT parquet, ROW_GROUP_SIZE 20480)"
    )
    modules_json = ", ".join(
        f"""{{"module_name":"module{number}","module_version":"{number}.' || (ordinal % {number + 3}) || '"}}"""
        for number in range(modules)
    ).replace("}, {", "},{")
    line = (
        """'{"account":"eu","product_key":"' || product_key || '","device_name":"' || device_name || '","iot_id":"' """
        """|| md5(device_name) || '","status":"ok","modules":["""
        + modules_json
        + f"""],"total":{modules},"pages":1,"attempts":1,"request_id":"' || md5(ordinal::VARCHAR) || '","audited_at":"""
        """"2026-11-23T02:' || lpad((ordinal % 60)::VARCHAR, 2, '0') || ':03.123Z"}'"""
    )
    text = r"(FORMAT csv, DELIMITER '\x1f', QUOTE '', ESCAPE '', HEADER false)"
    database.execute(f"COPY (SELECT {line} FROM '{fleet}') TO '{run / 'devices.jsonl'}' {text}")
    (run / "failures.jsonl").touch()
    since = 1_795_399_200_000  # 2026-11-23 02:00
    state = (
        "{'product_key': product_key, 'device_name': device_name, 'iot_id': NULL, 'status': 'OFFLINE', "
        f"'changed_ms': {since} + CASE WHEN ordinal % 20 = 0 THEN 9000000 ELSE -9000000 END, 'changed_form': 'utc', "
        f"'last_online_ms': {since} - 99000000, 'last_online_form': 'utc'}}"
    )
    rows = database.execute(f"SELECT to_json(list({state})) FROM '{fleet}' GROUP BY product_key, ordinal // 350")
    with (run / "states.jsonl").open("w") as file:
        while some := rows.fetchmany(1_000):
            file.writelines(f"{row}\n" for (row,) in some)
    manifest = {
        "schema_version": 2, "auditor_version": "0", "name": "planned", "state": "complete",
        "started_at": "2026-11-23T02:00:00.000Z", "finished_at": "2026-11-23T10:00:00.000Z", "accounts": [],
        "fleet": {"source": "fleet.csv", "devices": devices, "duplicates": 0, "sha256": "0" * 64},
        "devices": {"ok": devices, "empty": 0, "not_found": 0, "failed": 0, "pending": 0},
    }  # fmt: skip
    (run / "run.json").write_bytes(orjson.dumps(manifest))
    columns = "ordinal, account, product_key, device_name, iot_id, 'ok' AS status, 1 AS attempts, 'queried' AS source"
    database.execute(f"COPY (SELECT {columns} FROM '{fleet}') TO '{run / 'devices.parquet'}' (FORMAT parquet)")


if __name__ == "__main__":
    main()
