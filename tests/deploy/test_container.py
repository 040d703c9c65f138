"""The image of deploy/container: two stages, no user with rights, no index, and only files that `make dist` makes.

`make image-test` builds and runs it.
"""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = re.sub(r"\\\n\s*", " ", (ROOT / "deploy" / "container" / "Containerfile").read_text())
STEPS = [line.split(maxsplit=1) for line in TEXT.splitlines() if line and not line.startswith("#")]


def words_of(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def test_the_last_stage_runs_as_a_numbered_user_without_a_build() -> None:
    assert len(words_of("FROM")) == 2
    last = [name for name, _ in STEPS][::-1]
    assert "RUN" not in last[: last.index("FROM")]
    assert words_of("USER") == ["10001:10001"]
    assert words_of("ENTRYPOINT") == ['["/opt/auditor/bin/auditor"]']


def test_packages_come_from_the_wheelhouse_with_their_hashes() -> None:
    (build,) = words_of("RUN")
    installs = [each for each in build.split("&&") if "pip install" in each]
    assert all("--no-index" in each and "--no-deps" in each for each in installs)
    assert [("--require-hashes" in each) or ("./auditor-*.whl" in each) for each in installs] == [True, True]


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    ignored, *kept = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
    assert ignored == "*"
    sources = [word for each in words_of("COPY") if not each.startswith("--") for word in each.split()[:-1]]
    assert sources == ["requirements/${LOCK}", "dist/auditor-*.whl"]
    locks = ["!requirements/audit.lock", "!requirements/extras.lock"]
    assert sorted(kept) == ["!build/wheelhouse", "!dist/*.whl", *locks]
    assert "obstore==" in (ROOT / "requirements" / "extras.lock").read_text(), "runs in a bucket need it"
