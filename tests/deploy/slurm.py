"""A Slurm of one node on this machine: munged, slurmctld and slurmd in a folder, ended with the block."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "sinfo")
_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin"

MISSING = [each for each in PROGRAMS if shutil.which(each, path=_PATH) is None]

needs_slurm = pytest.mark.skipif(
    bool(MISSING) or os.geteuid() != 0,
    reason=f"NOT TESTED: an array job of Slurm, because {', '.join(MISSING) or 'root'} is missing (apt-get install slurm-wlm munge)",
)

_CONFIGURATION = """ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobRequeue=1
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MpiDefault=none
SwitchType=switch/none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cores} State=UNKNOWN
PartitionName=main Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""

MAX_SECONDS = 60


class Slurm:
    """A running Slurm.

    Attributes:
        environment: of commands that talk to it.
    """

    def __init__(self, folder: Path) -> None:
        self.environment = os.environ | {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _PATH}

    def call(self, *words: object) -> str:
        """Run a command to its end, and return what it printed."""
        texts = [str(word) for word in words]
        ended = subprocess.run(
            texts, env=self.environment, capture_output=True, text=True, check=False, timeout=MAX_SECONDS
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@contextmanager
def running_slurm(folder: Path) -> Iterator[Slurm]:
    """Run a Slurm until the block ends."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    host = socket.gethostname().partition(".")[0]
    text = _CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(2), cores=os.cpu_count() or 1)
    (folder / "slurm.conf").write_text(text)
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)
    slurm = Slurm(folder)
    munge = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
    try:
        slurm.call(
            "munged", "--force", "--num-threads=1", *(f"--{key}={folder}/munge.{end}" for key, end in munge.items())
        )
        slurm.call("slurmctld", "-f", folder / "slurm.conf")
        slurm.call("slurmd", "-f", folder / "slurm.conf")
        _wait_until(lambda: "idle" in slurm.call("sinfo", "--noheader", "--format=%t"))
        yield slurm
    finally:
        for name in ("slurmd", "slurmctld", "munge"):
            _end(folder / f"{name}.pid")


def _wait_until(condition: Callable[[], bool]) -> None:
    ends_at = time.monotonic() + MAX_SECONDS
    while True:
        with suppress(AssertionError):
            if condition():
                return
        assert time.monotonic() < ends_at
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def _end(pid_file: Path) -> None:
    with suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        os.kill(pid, signal.SIGTERM)
        ends_at = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and time.monotonic() < ends_at:
            time.sleep(0.05)
        os.kill(pid, signal.SIGKILL)
