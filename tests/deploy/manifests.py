"""Read Kubernetes manifests with the models of the official client, and print what these do not have: nothing, if right.

Run by a Python that has ``kubernetes``: it is none of auditor's dependencies.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiClient

KINDS = {"CronJob": "V1CronJob", "PersistentVolumeClaim": "V1PersistentVolumeClaim"}


def differences(given: Any, read: Any, where: str = "") -> Iterator[str]:
    """Yield what a model dropped or changed: keys that it does not have, and values of another type."""
    if isinstance(given, dict) and isinstance(read, dict):
        for key in given:
            if key not in read:
                yield f"{where}.{key}: is no field"
            else:
                yield from differences(given[key], read[key], f"{where}.{key}")
    elif isinstance(given, list) and isinstance(read, list) and len(given) == len(read):
        for number, (one, other) in enumerate(zip(given, read, strict=True)):
            yield from differences(one, other, f"{where}[{number}]")
    elif given != read:
        yield f"{where}: {given!r} became {read!r}"


def main(path: str) -> int:
    client, found = ApiClient(), []
    documents = list(yaml.safe_load_all(Path(path).read_text(encoding="utf-8")))
    for document in documents:
        try:
            model = client.deserialize(json.dumps(document), KINDS[document["kind"]], "application/json")
        except (ValueError, KeyError, AttributeError) as error:
            found.append(f"{document.get('kind')}: {error}")
            continue
        found += differences(document, client.sanitize_for_serialization(model), document["kind"])
    print(json.dumps({"documents": documents, "problems": found}))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
