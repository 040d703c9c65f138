"""Recipes that start shards: manifests for Kubernetes, and a script for Slurm."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from auditor.cli.commands.cluster import INDEX_VARIABLES
from auditor.errors import SupersededError, UsageError

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("AUDITOR_KUBERNETES_PYTHON", ROOT / ".kubernetes" / "bin" / "python"))

needs_kubernetes = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="NOT TESTED: Kubernetes manifests, because .kubernetes is missing (make .kubernetes/.installed)",
)


def read_manifests(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the documents of a file, and what the models of the official client do not have."""
    script = Path(__file__).with_name("manifests.py")
    shown = subprocess.run([PYTHON, script, path], capture_output=True, text=True, check=True)
    read = json.loads(shown.stdout)
    return read["documents"], read["problems"]


@needs_kubernetes
def test_manifests_are_what_the_official_models_have(tmp_path: Path) -> None:
    path = ROOT / "deploy" / "kubernetes" / "auditor.yaml"
    documents, problems = read_manifests(path)
    assert (len(documents), problems) == (3, [])
    broken = tmp_path / "broken.yaml"
    broken.write_text(path.read_text().replace("backoffLimitPerIndex", "backoffPerIndex"))
    assert ["backoffPerIndex: is no field" in problem for problem in read_manifests(broken)[1]] == [True]


@needs_kubernetes
def test_pods_have_no_privileges_and_follow_the_exit_codes() -> None:
    documents, _ = read_manifests(ROOT / "deploy" / "kubernetes" / "auditor.yaml")
    jobs = {
        each["metadata"]["name"]: each["spec"]["jobTemplate"]["spec"] for each in documents if each["kind"] == "CronJob"
    }
    for job in jobs.values():
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert not any("secret" in json.dumps(each).lower() for each in container["env"]), "keys are files"
    shards = jobs["auditor-shards"]
    final = shards["podFailurePolicy"]["rules"][0]
    assert (final["action"], final["onExitCodes"]["values"]) == (
        "FailIndex",
        [UsageError.exit_code, SupersededError.exit_code],
    )
    assert shards["completionMode"] == "Indexed"
    assert INDEX_VARIABLES[0] == "JOB_COMPLETION_INDEX"


@pytest.mark.parametrize(
    ("codes", "expected", "starts"), [([130, 3, 0], 0, 3), ([75, 0], 75, 1), ([2], 2, 1), ([3] * 9, 3, 6)]
)
def test_the_slurm_script_starts_again_only_what_may_be(
    tmp_path: Path, codes: list[int], expected: int, starts: int
) -> None:
    """Its program is replaced by one that ends with these codes, one after the other."""
    program, left = tmp_path / "auditor", tmp_path / "codes"
    left.write_text("\n".join(map(str, codes)) + "\n")
    program.write_text(
        f'#!/bin/bash\necho "$*" >> {tmp_path}/started\ncode=$(head -n 1 {left})\nsed -i 1d {left}\nexit "$code"\n'
    )
    program.chmod(0o755)
    script = ROOT / "deploy" / "slurm" / "auditor.sbatch"
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "AUDITOR_RETRY_SECONDS": "0", "SLURM_ARRAY_TASK_ID": "2"}
    ended = subprocess.run(["bash", script, "RUN", "nightly.toml"], env=env, check=False)
    started = (tmp_path / "started").read_text().splitlines()
    assert (ended.returncode, len(started)) == (expected, starts)
    assert set(started) == {"shard RUN --settings nightly.toml --log-format json"}
