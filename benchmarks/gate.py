"""What the gate itself costs, and how well it holds a rate: alone with 200 waiters, and in a whole audit.

python benchmarks/gate.py [SECONDS]

The budget lies in a shared file, as it does by default.
"""

import sys
import tempfile
import time
from pathlib import Path

import anyio
from measured import audit, platform

from auditor.resilience.quota_backends import SharedFile
from auditor.resilience.rate_limiter import Quota

WAITERS = 200
RATES = (10.0, 100.0, 1000.0, 2000.0)


async def alone(per_second: float, seconds: float, path: Path) -> tuple[float, float, float]:
    """Slots a second, the rate that was let through at the end, and CPU seconds a second."""
    quota = Quota(per_second, ledger=SharedFile(path, per_second))
    slots = 0

    async def wait() -> None:
        nonlocal slots
        while True:
            sent_at = await quota.slot()
            slots += 1
            quota.admitted(sent_at)

    async with anyio.create_task_group() as crowd:
        for _ in range(WAITERS):
            crowd.start_soon(wait)
        await anyio.sleep(1)
        began, cpu, before = time.perf_counter(), time.process_time(), slots
        await anyio.sleep(seconds)
        took, used, taken = time.perf_counter() - began, time.process_time() - cpu, slots - before
        crowd.cancel_scope.cancel()
    return taken / took, quota.rate, used / took


def audited(per_second: float, seconds: float, folder: Path, *, paced: bool) -> tuple[float, float, int]:
    """Requests a second of an audit, CPU seconds for each, and refusals; without the gate ``at_once`` holds it back."""
    folder.mkdir()
    options = ("--devices", int(per_second * seconds), "--per-second", per_second if paced else 0, "--latency", 20, 60)
    with platform(folder, *options) as settings:
        at_once = 100 if paced else round(per_second * 0.0425)
        settings.write_text(f"at_once = {at_once}\n{settings.read_text()}")
        run = audit(settings, folder / "runs")
    requests = run.manifest["requests"]
    return run.manifest["rate"]["achieved"], run.cpu / requests["sent"], requests["throttled"]


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="auditor-gate-") as temporary:
        print(f"the gate alone, {WAITERS} waiters, {seconds:g} s")
        print(f"{'told/s':>8} {'of told':>8} {'of rate':>8} {'of a core':>10}")
        for per_second in RATES:
            path = Path(temporary, f"{per_second:g}")
            slots, rate, cpu = anyio.run(alone, per_second, seconds, path, backend_options={"use_uvloop": True})
            print(f"{per_second:>8g} {slots / per_second:>8.1%} {slots / rate:>8.1%} {cpu:>10.1%}", flush=True)
        print("\nwhole audits at 1,000/s, with the gate and without it")
        print(f"{'gate':>8} {'requests/s':>11} {'CPU each':>10} {'refused':>8}")
        each: dict[bool, list[float]] = {True: [], False: []}
        for number in range(3):
            for paced in (True, False):
                folder = Path(temporary, f"audit-{number}-{paced}")
                rate, cpu, refused = audited(1000.0, seconds, folder, paced=paced)
                each[paced].append(cpu)
                print(f"{'yes' if paced else 'no':>8} {rate:>11.1f} {cpu * 1e6:>7.0f} µs {refused:>8}", flush=True)
        cost = min(each[True]) / min(each[False]) - 1
        print(f"the gate takes {cost:.1%} of it (the least of each)")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
