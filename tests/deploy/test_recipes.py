"""Recipes that start shards: manifests for Kubernetes, job definitions for AWS Batch, and a script for Slurm."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from auditor.cli.app import app
from auditor.cli.commands.cluster import INDEX_VARIABLES
from auditor.errors import SupersededError, UsageError

ROOT = Path(__file__).parents[2]
PYTHON = Path(os.environ.get("AUDITOR_KUBERNETES_PYTHON", ROOT / ".kubernetes" / "bin" / "python"))

needs_kubernetes = pytest.mark.skipif(
    not PYTHON.exists(),
    reason="NOT TESTED: Kubernetes manifests, because .kubernetes is missing (make .kubernetes/.installed)",
)

S3_PYTHON = Path(os.environ.get("AUDITOR_S3_PYTHON", ROOT / ".s3" / "bin" / "python"))

needs_botocore = pytest.mark.skipif(
    not S3_PYTHON.exists(),
    reason="NOT TESTED: job definitions of AWS Batch, because .s3 is missing (make .s3/.installed)",
)


def read_manifests(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Return the documents of a file, and what the models of the official client do not have."""
    script = Path(__file__).with_name("manifests.py")
    shown = subprocess.run([PYTHON, script, path], capture_output=True, text=True, check=True)
    read = json.loads(shown.stdout)
    return read["documents"], read["problems"]


@pytest.mark.slow
@needs_kubernetes
def test_manifests_are_what_the_official_models_have(tmp_path: Path) -> None:
    path = ROOT / "deploy" / "kubernetes" / "auditor.yaml"
    documents, problems = read_manifests(path)
    assert (len(documents), problems) == (4, [])
    broken = tmp_path / "broken.yaml"
    broken.write_text(path.read_text().replace("backoffLimitPerIndex", "backoffPerIndex"))
    assert ["backoffPerIndex: is no field" in problem for problem in read_manifests(broken)[1]] == [True]


@pytest.mark.slow
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
    assert "JOB_COMPLETION_INDEX" in INDEX_VARIABLES
    (container,) = shards["template"]["spec"]["containers"]
    assert {"name": "JOB_COMPLETIONS", "value": str(shards["completions"])} in container["env"]
    for name in ("auditor-cut", "auditor-prune"):
        assert "keys" not in json.dumps(jobs[name])
        assert jobs[name]["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [UsageError.exit_code]


BATCH = ROOT / "deploy" / "aws-batch"


def read_job_definitions(*paths: Path) -> list[str]:
    """Return what the model of AWS Batch does not have of job definitions."""
    script = Path(__file__).with_name("job_definitions.py")
    shown = subprocess.run([S3_PYTHON, script, *paths], capture_output=True, text=True, check=True)
    problems: list[str] = json.loads(shown.stdout)
    return problems


def read_entrypoint() -> list[str]:
    """Return the program that the image of deploy/container starts."""
    text = (ROOT / "deploy" / "container" / "Containerfile").read_text()
    (line,) = [each for each in text.splitlines() if each.startswith("ENTRYPOINT ")]
    words: list[str] = json.loads(line.removeprefix("ENTRYPOINT "))
    return words


def assert_is_command(words: list[str]) -> None:
    program, *rest = words
    assert program.rpartition("/")[2] == "auditor"
    _, bound, _ = app.parse_args(rest, print_error=False, exit_on_error=False)
    assert bound.arguments


def test_each_recipe_starts_a_command_of_the_program() -> None:
    """AWS Batch appends the command of a job to the entrypoint of its image; Kubernetes replaces it."""
    for name in ("cut", "shard"):
        job = json.loads((BATCH / f"{name}.json").read_text())
        assert_is_command([*read_entrypoint(), *job["containerProperties"]["command"]])
    manifests = (ROOT / "deploy" / "kubernetes" / "auditor.yaml").read_text()
    commands = re.findall(r"command: \[(.*)\]", manifests)
    assert len(commands) == 3
    for command in commands:
        assert_is_command(command.replace('"', "").split(", "))


@pytest.mark.slow
@needs_botocore
def test_job_definitions_are_what_the_model_of_the_service_has(tmp_path: Path) -> None:
    paths = [BATCH / "cut.json", BATCH / "shard.json"]
    assert read_job_definitions(*paths) == []
    for number, (right, wrong) in enumerate((("evaluateOnExit", "evaluate"), ('"EXIT"', '"STOP"'), ('"1024"', "1024"))):
        broken = tmp_path / f"{number}.json"
        broken.write_text(paths[1].read_text().replace(right, wrong))
        assert read_job_definitions(broken) != [], wrong


def test_jobs_have_no_privileges_and_are_started_again_only_if_they_may_be() -> None:
    for name in ("cut", "shard"):
        job = json.loads((BATCH / f"{name}.json").read_text())
        container = job["containerProperties"]
        assert (container["privileged"], container["readonlyRootFilesystem"]) == (False, True)
        assert container["user"] == "10001:10001"
        assert not any("secret" in json.dumps(each).lower() for each in container["environment"])
    rules = job["retryStrategy"]["evaluateOnExit"]
    final = [int(each["onExitCode"]) for each in rules if each["action"] == "EXIT"]
    assert final == [UsageError.exit_code, SupersededError.exit_code]
    assert rules[-1] == {"action": "RETRY", "onReason": "*"}
    assert "AWS_BATCH_JOB_ARRAY_INDEX" in INDEX_VARIABLES


def test_the_array_job_of_aws_batch_waits_for_the_run_to_be_cut(tmp_path: Path) -> None:
    """``aws`` is replaced by a program that prints its arguments, and a job's id."""
    program = tmp_path / "aws"
    program.write_text(f'#!/bin/bash\necho "$*" >> {tmp_path}/called\necho job-7\n')
    program.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([BATCH / "submit.sh", "queue", "4"], env=env, check=True, capture_output=True)
    first, second = (tmp_path / "called").read_text().splitlines()
    assert "--job-definition auditor-cut" in first
    assert "--job-definition auditor-shard" in second
    assert "--array-properties size=4 --depends-on jobId=job-7" in second


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
