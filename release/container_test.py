"""Build the image of deploy/container and run it, without a registry.

python release/container_test.py

The base image is made by debootstrap. The image is built by buildah, and its root is mounted without write access for a
user without rights, as `podman run --read-only` does. Where a tool or the right is missing, it says so.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
BASE, IMAGE = "localhost/auditor-base:bookworm", "localhost/auditor:test"
TOOLS = ("buildah", "debootstrap", "unshare", "chroot")
SUITE = ("bookworm", "http://deb.debian.org/debian")

READ_ONLY = """
set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro "$1"
mount -t tmpfs tmpfs "$1/tmp"
mount -t tmpfs -o uid=10001,gid=10001,mode=0750 tmpfs "$1/var/lib/auditor"
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
exec chroot --userspec=10001:10001 "$1" /usr/bin/env -i PATH=/opt/auditor/bin:/usr/bin HOME=/var/lib/auditor sh -ec '
    test "$(id -u)" = 10001
    ! touch /opt/auditor/x 2>/dev/null
    cd /var/lib/auditor
    auditor --version
    auditor demo --devices 40 >/dev/null 2>&1
    auditor runs audits
    ! test -e /opt/auditor/bin/pip'
"""


def run(*words: str | Path) -> str:
    """Run a command and return what it prints; stop the test if it fails."""
    environment = os.environ | {"BUILDAH_ISOLATION": "chroot", "STORAGE_DRIVER": "vfs"}
    ended = subprocess.run(
        [str(each) for each in words], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if ended.returncode != 0:
        sys.exit(f"{' '.join(map(str, words))}: exit {ended.returncode}\n{ended.stdout}{ended.stderr}")
    return ended.stdout.strip()


def make_base(folder: Path) -> None:
    """Make the base image from Debian's packages, unless it exists."""
    if run("buildah", "images", "--quiet", "--filter", f"reference={BASE}"):
        return
    packages = "--include=python3,python3-venv,ca-certificates"
    run("debootstrap", "--variant=minbase", packages, SUITE[0], folder / "base", SUITE[1])
    container = run("buildah", "from", "scratch")
    run("buildah", "add", "--quiet", container, folder / "base", "/")
    run("buildah", "commit", "--quiet", "--rm", container, BASE)


def main() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or os.geteuid() != 0:
        print(f"SKIPPED  the image is not built: {', '.join(missing) or 'root'} is missing")
        return
    with tempfile.TemporaryDirectory() as folder:
        make_base(Path(folder))
    run(
        "buildah",
        "build",
        "--quiet",
        "--build-arg",
        f"BASE={BASE}",
        "--file",
        "deploy/container/Containerfile",
        "--tag",
        IMAGE,
        ".",
    )
    container = run("buildah", "from", IMAGE)
    try:
        user = run("buildah", "inspect", "--format", "{{.OCIv1.Config.User}}", container)
        assert user == "10001:10001", user
        mounted = run("buildah", "mount", container)
        print(run("unshare", "--mount", "--pid", "--fork", "sh", "-c", READ_ONLY, "sh", mounted))
    finally:
        run("buildah", "rm", container)
    print("ok       the image runs as user 10001 on a read-only root")


if __name__ == "__main__":
    main()
