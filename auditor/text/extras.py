"""How to install the packages that a feature needs, without a name that another person could register."""

import json
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_REQUIREMENT = re.compile(r"(?P<package>[^;]+?)\s*;.*extra == ['\"](?P<extra>[^'\"]+)['\"]")


def describe_extra(extra: str) -> str:
    """Return the command that installs an extra of auditor, such as ``pip install '/opt/auditor[report]'``.

    It names the checkout or the wheel that auditor was installed from. If that is gone, it names the packages.
    """
    from importlib.metadata import Distribution, PackageNotFoundError

    try:
        distribution = Distribution.from_name("auditor")
    except PackageNotFoundError:
        return f"pip install '.[{extra}]', in the checkout of auditor"
    source = _installed_from(distribution)
    if source is not None:
        return f"pip install {shlex.quote(f'{source}[{extra}]')}"
    found = (_REQUIREMENT.fullmatch(each) for each in distribution.requires or ())
    packages = [each["package"] for each in found if each is not None and each["extra"] == extra]
    return f"pip install {' '.join(map(shlex.quote, packages))}"


def _installed_from(distribution: "Distribution") -> Path | None:
    """Return the checkout or wheel that a distribution was installed from (PEP 610); None if it no longer exists."""
    try:
        parts = urlsplit(json.loads(distribution.read_text("direct_url.json") or "{}").get("url", ""))
    except ValueError:
        return None
    path = Path(unquote(parts.path))
    return path if parts.scheme == "file" and path.exists() else None
