"""Generate the JSON Schemas of every document from the types that describe them; --check compares instead.

Descriptions are the docstrings of the types. Rules that types cannot express are in ``RULES``.
"""

import inspect
import re
import sys
import typing
from pathlib import Path
from typing import Any

import comparison_documents
import documents
import msgspec
import orjson
import webhook_documents
from msgspec import UnsetType

from auditor.config.settings import Settings
from auditor.planning.models import Plan
from auditor.runs.folder import CHANGES, COMPRESSED_RESULTS, FAILURES, FLEET, OPTIONAL, RESULTS, SEALED
from auditor.runs.manifest import MAX_FAILURE_CODES, MAX_GAPS, SCHEMA_VERSION, Manifest
from auditor.runs.products import ProductInfo

FOLDER = Path(__file__).parents[1] / "auditor" / "schemas"

DOCUMENTS: dict[str, tuple[type, str]] = {
    "run": (Manifest, "run.json: the manifest of a run folder"),
    "device": (documents.DeviceRecord, "A line of devices.jsonl: a device's conclusive answer"),
    "failure": (documents.FailureRecord, "A line of failures.jsonl: a device without a conclusive answer"),
    "product": (ProductInfo, "A line of products.jsonl: a product of the fleet"),
    "inventory": (documents.InventoryDocument, "inventory.json: how many devices run which version of which module"),
    "plan": (Plan, "auditor plan --format json: the cost of an audit"),
    "diff": (comparison_documents.DiffDocument, "auditor diff --format json: changes between two runs"),
    "changes": (comparison_documents.ChangesDocument, "auditor diff --since --format json: changes since a run"),
    "progress": (documents.ProgressLine, "A line of progress on standard error, by --progress json"),
    "runs": (documents.RunsDocument, "auditor runs --format json: the runs of a directory"),
    "timeline": (documents.DeviceDocument, "auditor device --format json: a device over all runs"),
    "policy": (documents.PolicyDocument, "auditor policy --format json: the result of a policy"),
    "history": (comparison_documents.HistoryDocument, "auditor history --format json: versions over several runs"),
    "rollouts": (comparison_documents.RolloutsDocument, "auditor history --rollouts --format json: states of rollouts"),
    "webhook": (webhook_documents.WebhookEvent, "The body of a webhook request"),
    "settings": (Settings, "The settings file of an audit (TOML)"),
    "rules": (documents.PolicyFile, "A file of policy rules (TOML)"),
}
INPUTS = ("settings", "rules")
"""Documents that users write: keys with a default are optional."""

IDENTITY = {
    "anyOf": [
        {"properties": {"iot_id": {"type": "string"}}},
        {"properties": {"product_key": {"type": "string"}, "device_name": {"type": "string"}}},
    ]
}
NO_UNANSWERED = {"properties": {"failed": {"const": 0}, "pending": {"const": 0}}}

RULES: dict[str, dict[str, Any]] = {
    "settings": {
        "$defs": {
            "Account": {
                "oneOf": [{"required": ["access_key_id", "access_key_secret"]}, {"required": ["credentials"]}],
                "not": {"required": ["access_key_secret", "credentials"]},
            },
            "CredentialsSettings": {"oneOf": [{"required": ["type"]}, {"required": ["command", "format"]}]},
        },
    },
    "run": {
        "properties": {"failures": {"maxItems": MAX_FAILURE_CODES}},
        "$defs": {
            "FileInfo": {
                "properties": {
                    "name": {"enum": [FLEET, RESULTS, COMPRESSED_RESULTS, FAILURES, *OPTIONAL, *SEALED, CHANGES]}
                }
            },
            "DiscoveryInfo": {"properties": {"gaps": {"maxItems": MAX_GAPS}}},
        },
        "allOf": [
            {
                "if": {"properties": {"state": {"const": "complete"}}},
                "then": {
                    "properties": {
                        "devices": NO_UNANSWERED,
                        "finished_at": {"type": "string"},
                        "files": {"minItems": len(SEALED) + 3},
                    }
                },
            },
            {
                "if": {"properties": {"state": {"const": "within_tolerance"}}},
                "then": {
                    "properties": {
                        "finished_at": {"type": "string"},
                        "max_failed": {"type": ["integer", "string"]},
                        "files": {"minItems": len(SEALED) + 3},
                    }
                },
            },
        ],
    },
    "device": IDENTITY
    | {
        "$defs": {"ModuleVersion": {"properties": {"module_name": {"minLength": 1}}}},
        "allOf": [
            {
                "if": {"properties": {"status": {"const": "ok"}}},
                "then": {
                    "properties": {"modules": {"minItems": 1}, "total": {"minimum": 1}, "pages": {"minimum": 1}},
                },
                "else": {"properties": {"modules": {"maxItems": 0}, "total": {"const": 0}}},
            },
            {
                "if": {"required": ["reason"]},
                "then": {"properties": {"status": {"const": "empty"}}},
                "else": {"properties": {"attempts": {"minimum": 1}}},
            },
        ],
    },
    "failure": IDENTITY,
    "inventory": {
        "if": {"properties": {"complete": {"const": True}}},
        "then": {"properties": {"devices": NO_UNANSWERED}},
        "else": {
            "properties": {
                "devices": {
                    "anyOf": [{"properties": {"failed": {"minimum": 1}}}, {"properties": {"pending": {"minimum": 1}}}]
                }
            }
        },
        "dependentSchemas": {
            "sample": {
                "properties": {"inventory": {"items": {"required": ["low", "high"]}}},
                "required": ["unsampled"],
            },
            "unsampled": {"required": ["sample"]},
            "carried": {"required": ["oldest_answer_at"]},
            "oldest_answer_at": {"required": ["carried"]},
        },
    },
}


def generate(kind: str) -> bytes:
    """Return the JSON Schema of a document."""
    described, title = DOCUMENTS[kind]
    (reference,), components = msgspec.json.schema_components(
        [described],
        schema_hook=lambda _: {"description": "Any value."},  # object
        ref_template="#/$defs/{name}",
    )
    types = {each.__name__: each for each in _classes(described)}
    for name, component in components.items():
        _describe(component, types.get(name), is_input=kind in INPUTS)
    top = components.pop(reference["$ref"].rpartition("/")[2])
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": f"urn:auditor:schema:{SCHEMA_VERSION}:{kind}",
        "title": title,
        **top,
        **({"$defs": components} if components else {}),
    }
    return orjson.dumps(_merge(schema, RULES.get(kind, {})), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _classes(hint: object, around: tuple[type, ...] = ()) -> list[type]:
    """Return the classes with fields that a type consists of, below those ``around`` it: a class may contain itself."""
    if hint in around:
        return []
    if not (inspect.isclass(hint) and (issubclass(hint, msgspec.Struct) or hasattr(hint, "__dataclass_fields__"))):
        return [found for argument in typing.get_args(hint) for found in _classes(argument, around)]
    around = (*around, hint)
    return [hint, *(found for field in typing.get_type_hints(hint).values() for found in _classes(field, around))]


def _describe(component: dict[str, Any], described: type | None, *, is_input: bool) -> None:
    """Add descriptions, and close the object. In an output every key is required that is not UNSET by default."""
    component.pop("title", None)
    if described is None or "properties" not in component:
        return
    component["description"] = _sentence(inspect.getdoc(described) or "")
    texts: dict[str, str] = {}
    for each in reversed(described.__mro__):
        texts |= _attributes(each)
    hints = typing.get_type_hints(described)
    if issubclass(described, msgspec.Struct):
        fields = msgspec.structs.fields(described)
        texts = {field.encode_name: texts[field.name] for field in fields if field.name in texts}
        hints = {field.encode_name: hints[field.name] for field in fields}
    properties = component["properties"]
    if "schema_version" in properties:
        properties = component["properties"] = {"schema_version": {"const": SCHEMA_VERSION}} | {
            name: value for name, value in properties.items() if name != "schema_version"
        }
    for name, value in properties.items():
        if not is_input:
            value.pop("default", None)
        properties[name] = {"description": texts[name]} | value if name in texts else value
    if not is_input:
        component["required"] = [name for name in properties if UnsetType not in typing.get_args(hints[name])]
    component["additionalProperties"] = False


def _attributes(described: type) -> dict[str, str]:
    """Return the descriptions of a class's attributes, from the section of that name in its docstring."""
    section = (described.__doc__ or "").partition("Attributes:\n")[2].partition("\n\n")[0]
    entries = re.findall(r"^ {8}([a-z][\w, ]*): (.*(?:\n {12}.*)*)", section, re.MULTILINE)
    return {name.strip(): _sentence(text) for names, text in entries for name in names.split(",")}


def _sentence(text: str) -> str:
    text = " ".join(text.partition("\n\n")[0].split()).replace("``", "").replace("None:", "null:").rstrip(".")
    return f"{text[:1].upper()}{text[1:]}."


def _merge(schema: dict[str, Any], rules: dict[str, Any]) -> dict[str, Any]:
    for key, value in rules.items():
        schema[key] = _merge(schema[key], value) if isinstance(schema.get(key), dict) else value
    return schema


def main() -> None:
    """Write the schemas, or compare them if the first argument is ``--check``."""
    different = []
    for kind in DOCUMENTS:
        path, content = FOLDER / f"{kind}.schema.json", generate(kind)
        if not path.exists() or path.read_bytes() != content:
            different.append(path.name)
            if sys.argv[1:] != ["--check"]:
                path.write_bytes(content)
    if different and sys.argv[1:] == ["--check"]:
        sys.exit(f"not as generated: {', '.join(different)}; run make schemas")


if __name__ == "__main__":
    main()
