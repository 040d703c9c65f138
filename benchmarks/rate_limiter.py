"""Cost and precision of the rate limiter: alone with 200 waiting requests, below its limit, and in complete audits.

python benchmarks/rate_limiter.py [SECONDS]

The quota is stored in a shared file, as it is by default.
"""

import sys
import tempfile
import time
from pathlib import Path

import anyio
from harness import audit, platform

from auditor.resilience.file_backend import FileBackend
from auditor.resilience.rate_limiter import AdaptiveRateLimiter, RateLimiter, UnlimitedRateLimiter

WAITERS = 200
RATES = (10.0, 100.0, 1000.0, 2000.0)
HIGH_RATE, PERMITS = 1e6, 100_000


async def measure_alone(per_second: float, seconds: float, path: Path) -> tuple[float, float, float]:
    """Return permits a second, the rate at the end, and CPU seconds a second."""
    limiter = AdaptiveRateLimiter(per_second, backend=FileBackend(path, per_second))
    permits = 0

    async def wait() -> None:
        nonlocal permits
        while True:
            sent_at = await limiter.acquire()
            permits += 1
            limiter.on_success(sent_at)

    async with anyio.create_task_group() as group:
        for _ in range(WAITERS):
            group.start_soon(wait)
        await anyio.sleep(1)
        started, cpu, before = time.perf_counter(), time.process_time(), permits
        await anyio.sleep(seconds)
        took, used, taken = time.perf_counter() - started, time.process_time() - cpu, permits - before
        group.cancel_scope.cancel()
    return taken / took, limiter.rate, used / took


async def measure_below_limit(limiter: RateLimiter) -> float:
    """Return the CPU microseconds of a permit of a limit that is not reached."""
    started = time.process_time()
    for _ in range(PERMITS):
        limiter.on_success(await limiter.acquire())
    return 1e6 * (time.process_time() - started) / PERMITS


async def compare_below_limit(path: Path) -> None:
    backend = FileBackend(path, HIGH_RATE)
    for _ in range(3):
        unlimited = await measure_below_limit(UnlimitedRateLimiter())
        limited = await measure_below_limit(AdaptiveRateLimiter(HIGH_RATE, backend=backend))
        print(f"{unlimited:>9.2f} µs {limited:>9.2f} µs", flush=True)


def measure_audit(per_second: float, seconds: float, folder: Path, *, limited: bool) -> tuple[float, float, int]:
    """Return requests a second, CPU seconds per request, and throttled requests."""
    folder.mkdir()
    options = (
        "--devices",
        int(per_second * seconds),
        "--per-second",
        per_second if limited else 0,
        "--latency",
        20,
        60,
    )
    with platform(folder, *options) as settings:
        concurrency = 100 if limited else round(per_second * 0.0425)
        settings.write_text(f"concurrency = {concurrency}\n{settings.read_text()}")
        run = audit(settings, folder / "runs")
    requests = run.manifest["requests"]
    return run.manifest["rate"]["achieved"], run.cpu / requests["sent"], requests["throttled"]


def main(seconds: float) -> None:
    with tempfile.TemporaryDirectory(prefix="auditor-rate-limiter-") as temporary:
        print(f"the rate limiter alone, {WAITERS} waiting requests, {seconds:g} s")
        print(f"{'limit/s':>8} {'of limit':>8} {'of rate':>8} {'of a core':>10}")
        for per_second in RATES:
            path = Path(temporary, f"{per_second:g}")
            permits, rate, cpu = anyio.run(
                measure_alone, per_second, seconds, path, backend_options={"use_uvloop": True}
            )
            print(f"{per_second:>8g} {permits / per_second:>8.1%} {permits / rate:>8.1%} {cpu:>10.1%}", flush=True)
        print(f"\nCPU of a permit without a limit, and with one of {HIGH_RATE:,.0f}/s that is not reached")
        anyio.run(compare_below_limit, Path(temporary, "high"), backend_options={"use_uvloop": True})
        print("\ncomplete audits at 1,000/s, with the rate limiter and without it")
        print(f"{'limiter':>8} {'requests/s':>11} {'CPU each':>10} {'throttled':>9}")
        each: dict[bool, list[float]] = {True: [], False: []}
        for number in range(3):
            for limited in (True, False):
                folder = Path(temporary, f"audit-{number}-{limited}")
                rate, cpu, throttled = measure_audit(1000.0, seconds, folder, limited=limited)
                each[limited].append(cpu)
                print(f"{'yes' if limited else 'no':>8} {rate:>11.1f} {cpu * 1e6:>7.0f} µs {throttled:>9}", flush=True)
        cost = min(each[True]) / min(each[False]) - 1
        print(f"the rate limiter takes {cost:.1%} of it (the minimum of each)")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 20.0)
