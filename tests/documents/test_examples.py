"""Every example of a document works: commands against a simulated platform, settings, rules, programs."""

from pathlib import Path

import pytest

pytest.importorskip("sybil", reason="NOT TESTED: the examples of the documents, because Sybil is not installed")

from tests.documents.conftest import DOCS
from tests.documents.examples import Examples

DOCUMENTS = [DOCS.parent / "README.md", *sorted(DOCS.glob("*.md"))]
WITHOUT = {"commands.md"}
"""Documents whose console blocks are compared elsewhere: by `docs/help_texts.py --check`."""

SLOW = {"cluster.md", "logs.md", "python.md", "simulator.md", "tracing.md"}


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(each, id=each.name, marks=[pytest.mark.slow] if each.name in SLOW else [])
        for each in DOCUMENTS
        if each.name not in WITHOUT
    ],
)
def test_examples_of_a_document(path: Path, request: pytest.FixtureRequest) -> None:
    text = path.read_text(encoding="utf-8")
    if not any(f"```{language}\n" in text for language in ("console", "toml", "json", "crontab", "ini", "python")):
        pytest.skip("it has no examples")
    examples = Examples(request.getfixturevalue("examples_folder"))
    examples.run(path)
    assert examples.count
    assert not examples.problems, "\n\n".join(examples.problems)
