"""Read job definitions of AWS Batch with the service's model, and print what it does not have: nothing, if right.

Run by a Python that has ``botocore``: it is none of auditor's dependencies.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from botocore.loaders import Loader
from botocore.model import ServiceModel
from botocore.validate import ParamValidator


def wrong_words(value: Any, shape: Any, where: str = "") -> Iterator[str]:
    """Yield values that are none of their shape's words; the validator does not check these."""
    if shape.type_name == "structure":
        for key, each in value.items():
            yield from wrong_words(each, shape.members[key], f"{where}.{key}")
    elif shape.type_name == "list":
        for number, each in enumerate(value):
            yield from wrong_words(each, shape.member, f"{where}[{number}]")
    elif getattr(shape, "enum", None) and value not in shape.enum:
        yield f"{where}: {value!r} is none of {', '.join(shape.enum)}"


def main(paths: list[str]) -> int:
    shape = (
        ServiceModel(Loader().load_service_model("batch", "service-2"))
        .operation_model("RegisterJobDefinition")
        .input_shape
    )
    problems = []
    for path in paths:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
        report = ParamValidator().validate(document, shape).generate_report()
        problems += [report] if report else list(wrong_words(document, shape))
    print(json.dumps(problems))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
