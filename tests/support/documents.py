"""Checks a JSON document against its schema, and that it contains no key that the schema lacks."""

from __future__ import annotations

from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from overlapkit.output.schema import json_schema


def check_document(document: dict[str, Any]) -> None:
    """Check a document, as loaded from JSON, against the schema that its `schema` key specifies.

    Raises:
        AssertionError: it does not match, or has a key without a meaning.
    """
    name = document["schema"].split("/")[1]
    problems = [
        f"{'.'.join(map(str, each.absolute_path)) or name}: {each.message}"
        for each in _strict(name).iter_errors(document)
    ]
    assert problems == [], problems


@cache
def _strict(name: str) -> Draft202012Validator:
    """The schema of a document without the permission to add keys, which only versions need."""
    schema = json_schema(name)
    for definition in (schema, *schema["$defs"].values()):
        if "properties" in definition:
            definition["additionalProperties"] = False
    return Draft202012Validator(schema)
