"""Put the manual page, shell completions, documents, example settings and units into the wheel's data."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

GENERATED = "build/share"
"""What ``release/shell_files.py`` wrote; a build without it has no manual page and no completions."""

DOCUMENTS = {"docs": (".md",), "configs": (".toml",), "deploy/systemd": (".conf", ".service", ".timer")}


class SharedData(BuildHookInterface[Any]):
    """Adds files for ``share/`` of the environment that the wheel is installed into."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Name the files, unless the installation is editable."""
        if version == "editable":
            return
        root = Path(self.root)
        files = {path: path.relative_to(root / GENERATED) for path in (root / GENERATED).rglob("*") if path.is_file()}
        for folder, endings in DOCUMENTS.items():
            found = (path for path in (root / folder).rglob("*") if path.suffix in endings)
            files |= {path: Path("doc/auditor") / path.relative_to(root) for path in found}
        build_data["shared_data"] = {str(path): f"share/{name.as_posix()}" for path, name in sorted(files.items())}
