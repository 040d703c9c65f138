"""The deadline of an audit: queries end early enough that the run can still be sealed."""

from auditor.concurrency import StopToken, TimeLimit

SEALING_SECONDS, SEALING_SECONDS_PER_DEVICE = 0.5, 60e-6
"""Approximate time to seal and verify a run, which is reserved before the deadline."""

MAX_RESERVED_FRACTION = 0.3
"""Maximum fraction of the time until the deadline that is reserved."""


class Deadline:
    """Requests the end of an audit when only the time to finish is left."""

    def __init__(self, time_limit: TimeLimit, stop: StopToken, devices: int) -> None:
        self._time_limit, self._stop = time_limit, stop
        self._plan(devices)

    def _plan(self, devices: int) -> None:
        """Reserve the time to seal a number of devices."""
        self._devices, sealing = devices, SEALING_SECONDS + SEALING_SECONDS_PER_DEVICE * devices
        available = MAX_RESERVED_FRACTION * self._time_limit.remaining()
        self._reserved = max(0.0, min(available, self._stop.drain_seconds + sealing))
        self._drain_seconds = max(0.0, self._reserved - sealing)

    def check(self, devices: int) -> None:
        """Request the end if its time has come; ``devices`` are now in the fleet."""
        if devices != self._devices:
            self._plan(devices)
        if self._time_limit.remaining() <= self._reserved:
            self._stop.request("the deadline was reached", interrupted=False, drain_seconds=self._drain_seconds)
