"""A workspace for the examples of documents, which all processes of the tests share, and a copy of it for each test."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.documents import workspace

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture(scope="session")
def built_workspace(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Iterator[tuple[Path, str]]:
    """The workspace, and the endpoint of the platform of its settings."""
    base = tmp_path_factory.getbasetemp()
    folder = workspace.build_once(base if worker_id == "master" else base.parent)
    with workspace.serve(base) as endpoint:
        yield folder, endpoint


@pytest.fixture(scope="session")
def demonstration(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder in which `auditor demo` was run."""
    base = tmp_path_factory.getbasetemp()
    return workspace.demonstrate_once(base if worker_id == "master" else base.parent)


@pytest.fixture
def examples_folder(built_workspace: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy of the workspace."""
    workspace.copy(built_workspace[0], tmp_path, built_workspace[1])
    return tmp_path
