"""Write where the files of a release come from: an in-toto statement with SLSA provenance.

python release/provenance.py FOLDER

The statement (https://in-toto.io/Statement/v1) has the digest of each file, the commit, and the locks of the build. It
is not signed: whoever releases signs it, for example with ``cosign attest-blob``.
"""

import hashlib
import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
LOCKS = ("requirements/audit.lock", "requirements/tools.lock")


def digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def git(*words: str) -> str:
    """Return what git prints about the checkout."""
    return subprocess.run(["git", "-C", ROOT, *words], capture_output=True, text=True, check=True).stdout.strip()  # noqa: S607


def statement(files: list[Path]) -> dict[str, Any]:
    """Return the statement about the files."""
    now = datetime.now(UTC).replace(microsecond=0).isoformat().replace("+00:00", "Z")
    committed = {"uri": "git+file:.", "digest": {"gitCommit": git("rev-parse", "HEAD")}}
    locks = [{"uri": f"file:{name}", "digest": {"sha256": digest(ROOT / name)}} for name in LOCKS]
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": path.name, "digest": {"sha256": digest(path)}} for path in sorted(files)],
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "urn:auditor:make-dist:v1",
                "externalParameters": {
                    "command": "make dist",
                    "changed_files": git("status", "--porcelain").splitlines(),
                },
                "internalParameters": {"python": platform.python_version(), "platform": platform.platform()},
                "resolvedDependencies": [committed, *locks],
            },
            "runDetails": {
                "builder": {"id": "urn:auditor:makefile"},
                "metadata": {"invocationId": f"urn:auditor:{git('rev-parse', 'HEAD')}:{now}", "finishedOn": now},
            },
        },
    }


def main(folder: Path) -> None:
    files = [
        path for path in folder.iterdir() if path.suffix in {".whl", ".gz", ".pex"} or path.name.endswith("cdx.json")
    ]
    text = json.dumps(statement(files), indent=2)
    (folder / "provenance.intoto.json").write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
