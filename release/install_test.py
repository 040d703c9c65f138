"""Install the wheel and the source distribution offline, with and without each extra, and run what was installed.

python release/install_test.py DIST WHEELHOUSE

Every supported Python that is on this machine is used: the first one with each extra, the others with none and with all.
Those that are missing are named. Nothing but the files of the two folders can be installed: no index is configured, and
the network is switched off for the installer.
"""

import os
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from pythons import VERSIONS, find_python

ROOT = Path(__file__).parents[1]
UV = ROOT / ".tools" / "bin" / "uv"
OFFLINE = ("--quiet", "--offline", "--no-index", "--no-config")

MODULES = {
    "credentials": "alibabacloud_credentials",
    "dask": "distributed",
    "dlt": "dlt",
    "notify": "apprise",
    "otel": "opentelemetry.sdk",
    "postgresql": "psycopg",
    "publish": "obstore",
    "redis": "redis",
    "report": "jinja2, xlsxwriter",
    "simulator": "lark",
}
"""What each extra makes importable."""

SHARED = (
    "man/man1/auditor.1", "bash-completion/completions/auditor", "zsh/site-functions/_auditor",
    "fish/vendor_completions.d/auditor.fish", "doc/auditor/configs/tuya.toml",
)  # fmt: skip
"""Files of the wheel outside of the program."""


def run(*words: str | Path, **environment: str) -> str:
    """Run a command and return its output; stop the test if it fails."""
    own = {key: value for key, value in os.environ.items() if not key.startswith(("PIP_", "UV_", "PYTHON"))}
    ended = subprocess.run(
        [str(each) for each in words],
        env=own | {"PIP_NO_INDEX": "1", "PIP_CONFIG_FILE": os.devnull} | environment,
        cwd=tempfile.gettempdir(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    if ended.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout + ended.stderr


def install(python: str, artifact: Path, wheelhouse: Path, folder: Path, extra: str | None) -> Path:
    """Install an artifact into a new environment, and return that."""
    environment = folder / (extra or "plain")
    run(UV, "venv", "--quiet", "--python", python, environment)
    named = f"auditor[{extra}] @ {artifact.as_uri()}" if extra else f"auditor @ {artifact.as_uri()}"
    to = ("--python", environment / "bin" / "python")
    run(UV, "pip", "install", *OFFLINE, "--find-links", wheelhouse, *to, named)
    return environment


def check_installed(environment: Path, artifact: Path, extra: str | None) -> None:
    """Run the installed program, and import what its extra is for."""
    auditor, python = environment / "bin" / "auditor", environment / "bin" / "python"
    wanted = ", ".join(modules for name, modules in MODULES.items() if extra in {name, "all"})
    if wanted:
        run(python, "-c", f"import {wanted}")
    if extra is None:
        assert "Usage: auditor COMMAND" in run(auditor, "--help")
        check_plain(environment, artifact)
    if extra == "report":
        check_demo(auditor, report=True)


def check_artifact(python: str, artifact: Path, wheelhouse: Path, folder: Path, extra: str | None) -> None:
    """Install an artifact with an extra, or with all of them, and check it."""
    named = ",".join(MODULES) if extra == "all" else extra
    check_installed(install(python, artifact, wheelhouse, folder, named), artifact, extra)


def check_plain(environment: Path, artifact: Path) -> None:
    """Check an installation without extras: its files, a demonstration, and how a missing package is named."""
    missing = [name for name in SHARED if not (environment / "share" / name).is_file()]
    assert not missing, missing
    said = check_demo(environment / "bin" / "auditor", report=False)
    assert f"pip install '{artifact}[report]'" in said, said


def check_demo(auditor: Path, *, report: bool) -> str:
    """Audit a simulated fleet, and return what was printed."""
    with tempfile.TemporaryDirectory() as folder:
        said = run(auditor, "demo", "--devices", "40", "--out", folder)
        assert (Path(folder) / "demo.html").is_file() == report
        assert "40" in run(auditor, "runs", folder)
    return said


def check_pip(python: str, wheel: Path, wheelhouse: Path, folder: Path) -> None:
    """Install the wheel with hashes by pip, as the documents say."""
    environment = folder / "pip"
    run(python, "-m", "venv", environment)
    pip = (environment / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--find-links", wheelhouse)
    run(*pip, "--require-hashes", "--requirement", ROOT / "requirements" / "audit.lock")
    run(*pip, wheel)
    run(environment / "bin" / "auditor", "--version")


def check_tool(python: str, wheel: Path, wheelhouse: Path, folder: Path) -> None:
    """Install the wheel as a tool of uv, as the documents say."""
    places = {"UV_TOOL_DIR": str(folder / "tools"), "UV_TOOL_BIN_DIR": str(folder / "bin")}
    run(UV, "tool", "install", *OFFLINE, "--find-links", wheelhouse, "--python", python, f"{wheel}[report]", **places)
    run(folder / "bin" / "auditor", "--version")


def main(dist: Path, wheelhouse: Path) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(MODULES) == set(extras) - {"test", "check", "fuzz", "docs"}, "MODULES misses an extra"
    (wheel,), (source,) = dist.glob("*.whl"), dist.glob("*.tar.gz")
    single: tuple[str, ...] = tuple(MODULES)
    for version in VERSIONS:
        python, started = find_python(version), time.monotonic()
        if python is None:
            print(f"SKIPPED  Python {version} is not on this machine", flush=True)
            continue
        with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(os.cpu_count()) as pool:
            folder = Path(temporary)
            tests = [
                *(
                    partial(check_artifact, python, wheel, wheelhouse, folder, extra)
                    for extra in (None, *single, "all")
                ),
                partial(check_artifact, python, source, wheelhouse, folder / "source", None),
                partial(check_pip, python, wheel, wheelhouse, folder),
                partial(check_tool, python, wheel, wheelhouse, folder),
            ]
            for ended in [pool.submit(test) for test in tests]:
                ended.result()
        single = ()
        print(
            f"ok       Python {version}: {len(tests)} installations in {time.monotonic() - started:.0f} s", flush=True
        )


if __name__ == "__main__":
    main(*(Path(each).resolve() for each in sys.argv[1:3]))
