"""The JSON documents of the commands: their JSON Schema and their reference tables.

Each document is a msgspec Struct whose fields carry their meaning, so that the schema and the
tables of docs/json*.md cannot drift from what is printed.

A new document takes a Struct in its command's document.py, a line in `DOCUMENTS`, and
``{{ reference_tables("NAME") }}`` in a template under skill/templates/docs; `overlapkit skill
render` writes the page and docs/schema/NAME.v1.json. The docstring of a nested Struct is the text
under its heading. The heading is the class name without the command's: ``ExplainDecision`` is
"Decision". A key that is omitted in some documents has a type with ``UnsetType``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

import msgspec
from msgspec import UNSET, Struct
from msgspec import inspect as types

from megatron.bridge.training.near_names import nearest
from overlapkit.errors import InputError

DOCUMENTS = {
    "explain": "overlapkit.explain.document:ExplainDocument",
    "explain-difference": "overlapkit.explain.difference_document:ExplainDifferenceDocument",
    "explain-versions": "overlapkit.explain.versions.document:ExplainVersionsDocument",
    "audit": "overlapkit.audit.document:AuditDocument",
    "translate": "overlapkit.translate.document:TranslateDocument",
    "rules": "overlapkit.explain.rules.document:RulesDocument",
    "plan": "overlapkit.plan.document:PlanDocument",
    "rates": "overlapkit.plan.rates.document:RatesDocument",
    "doctor": "overlapkit.doctor.document:DoctorDocument",
    "trace": "overlapkit.trace.document:TraceDocument",
    "compare": "overlapkit.trace.compare.document:CompareDocument",
    "lab": "overlapkit.lab.document:LabDocument",
    "lab-job": "overlapkit.lab.document:LabJobDocument",
    "lab-hunt": "overlapkit.lab.hunt.document:HuntDocument",
    "skill-check": "overlapkit.skill.check.document:CheckDocument",
    "skill-evals": "overlapkit.skill.evals.document:EvalsDocument",
}
"""Every document by the name in its `schema` key, and the Struct that it is encoded from."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def document_type(name: str) -> type[Struct]:
    """The Struct of a document.

    Raises:
        InputError: there is no document of that name.
    """
    if name not in DOCUMENTS:
        near = nearest(name, DOCUMENTS)
        hint = f"did you mean {near}?" if near else f"choose one of {', '.join(DOCUMENTS)}"
        raise InputError(f"{name}: unknown document; {hint}")
    module, _, cls = DOCUMENTS[name].partition(":")
    found: type[Struct] = getattr(import_module(module), cls)
    return found


def schema_id(name: str) -> str:
    """The value of a document's `schema` key, such as ``overlapkit/explain/v1``."""
    fields = {field.name: field for field in msgspec.structs.fields(document_type(name))}
    return str(fields["schema"].default)


def schema_file(name: str) -> str:
    """The name of a document's file in docs/schema, such as ``explain.v1.json``."""
    return schema_id(name).removeprefix("overlapkit/").replace("/", ".") + ".json"


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema of a document, with the meaning of every key.

    A key is required unless its type allows it to be absent: a document always contains the keys
    that have a default. Further keys are allowed, since a version may add some.

    Raises:
        InputError: there is no document of that name.
    """
    document = document_type(name)
    schema = _null_last(msgspec.json.schema(document))
    definitions = schema["$defs"]
    for struct in _structs(document):
        required = [f.encode_name for f in msgspec.structs.fields(struct) if not _may_be_absent(f)]
        definitions[struct.__name__]["required"] = required
    for definition in definitions.values():
        # Docstrings are wrapped in the source.
        definition["description"] = " ".join(definition.get("description", "").split())
    root = definitions.pop(document.__name__)
    return {
        "$schema": DIALECT,
        "$id": schema_id(name),
        "$comment": f"Generated from {DOCUMENTS[name]} by `overlapkit skill render`.",
        **root,
        "title": schema_id(name),
        "$defs": definitions,
    }


def schema_text(name: str) -> str:
    """The JSON Schema of a document as `overlapkit schema` prints it."""
    return msgspec.json.format(msgspec.json.encode(json_schema(name)), indent=2).decode() + "\n"


def _null_last(part: Any) -> Any:
    """The schema with null as the last choice: releases of msgspec differ in where they put it."""
    if isinstance(part, list):
        return [_null_last(each) for each in part]
    if not isinstance(part, dict):
        return part
    return {
        key: sorted(_null_last(value), key=lambda each: each == {"type": "null"})
        if key == "anyOf"
        else _null_last(value)
        for key, value in part.items()
    }


def reference_tables(name: str, *, beside: Sequence[str] = ()) -> str:
    """Markdown tables of a document's keys: its own, then one under a heading for each object.

    Args:
        name: the document.
        beside: documents whose tables are on the same page; objects that they share with this
            one are not described again.

    Raises:
        InputError: there is no document of that name.
        ValueError: two objects on the page would have one heading.
    """
    document = document_type(name)
    others = [document_type(each) for each in beside]
    known = [struct for other in others for struct in _structs(other)]
    new = [struct for struct in _structs(document) if struct not in known]
    headings = [_heading(struct) for struct in (*known, *new) if struct not in others]
    if len(set(headings)) < len(headings):
        raise ValueError(f"{name}: two objects have one heading among {', '.join(headings)}")
    return "\n".join(_sections(document, new))


def _sections(document: type[Struct], structs: Sequence[type[Struct]]) -> Iterator[str]:
    for struct in structs:
        if struct is not document:
            yield f"\n### {_heading(struct)}\n"
            yield f"{' '.join((struct.__doc__ or '').split())}\n"
        yield "| key | type | meaning |"
        yield "|---|---|---|"
        shown = types.type_info(struct)
        assert isinstance(shown, types.StructType)
        absent = {f.encode_name for f in msgspec.structs.fields(struct) if _may_be_absent(f)}
        for field in shown.fields:
            kind = type_text(field.type) + (
                ", may be absent" if field.encode_name in absent else ""
            )
            yield f"| `{field.encode_name}` | {kind} | {_meaning(field.type)} |"


def type_text(kind: types.Type) -> str:
    """A type in words, such as ``list of string or null``; objects of this page are linked.

    Raises:
        ValueError: the type has no name in JSON.
    """
    if isinstance(kind, types.Metadata):
        return type_text(kind.type)
    if isinstance(kind, types.UnionType):
        # JSON has one kind of number with a fraction: it covers the others.
        names = dict.fromkeys(map(type_text, kind.types))
        return " or ".join(n for n in names if not (n == "integer" and "number" in names))
    if isinstance(kind, types.StructType):
        heading = _heading(kind.cls)
        name = heading if heading.isupper() else heading[:1].lower() + heading[1:]
        return f"[{name}](#{heading.lower().replace(' ', '-')})"
    if isinstance(kind, (types.ListType, types.VarTupleType)):
        item = type_text(kind.item_type)
        return f"list of ({item})" if " or " in item else f"list of {item}"
    if isinstance(kind, types.DictType):
        value = type_text(kind.value_type)
        if value == "any":
            return "object"
        return f"object of ({value})" if " or " in value else f"object of {value}"
    if isinstance(kind, (types.LiteralType, types.EnumType)):
        return "string" if isinstance(_words(kind)[0], str) else "integer"
    for known, word in _WORDS.items():
        if isinstance(kind, known):
            return word
    raise ValueError(f"{kind}: not a type of the JSON documents")


_WORDS: dict[type[types.Type], str] = {
    types.AnyType: "any",
    types.NoneType: "null",
    types.BoolType: "boolean",
    types.IntType: "integer",
    types.FloatType: "number",
    types.StrType: "string",
}


def _words(kind: types.Type) -> list[Any]:
    """The values that a type lists; empty where it lists none."""
    if isinstance(kind, types.LiteralType):
        return list(kind.values)
    if isinstance(kind, types.EnumType):
        return [member.value for member in kind.cls]
    return [word for inner in _inner(kind) for word in _words(inner)]


def _inner(kind: types.Type) -> list[types.Type]:
    """The types that a type is made of, those of an object's fields not included."""
    if isinstance(kind, types.Metadata):
        return [kind.type]
    if isinstance(kind, types.UnionType):
        return list(kind.types)
    if isinstance(kind, (types.ListType, types.VarTupleType)):
        return [kind.item_type]
    if isinstance(kind, types.DictType):
        return [kind.key_type, kind.value_type]
    return []


def _meaning(kind: types.Type) -> str:
    """A field's description as a table cell, with the values that it does not mention."""
    described = isinstance(kind, types.Metadata) and (kind.extra_json_schema or {})
    text = str(described.get("description", "")) if described else ""
    words = [f"`{word}`" for word in _words(kind)]
    if any(word not in text for word in words):
        text += ("; " if text else "") + ("" if len(words) == 1 else "one of ") + ", ".join(words)
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(text.split()))


def _heading(struct: type[Struct]) -> str:
    """What an object is called on its page: ``ExplainDecision`` is "Decision"."""
    first, *rest = re.findall(r"[A-Z]+(?![a-z])|[A-Z][a-z0-9]*", struct.__name__)
    if rest and first == struct.__module__.split(".")[-2].capitalize():
        first, *rest = rest
    return " ".join([first, *(word if word.isupper() else word.lower() for word in rest)])


def _structs(struct: type[Struct]) -> list[type[Struct]]:
    """A Struct and those that it contains, each once, in the order of the fields."""
    found: dict[type[Struct], None] = {}

    def visit(kind: types.Type) -> None:
        if isinstance(kind, types.StructType) and kind.cls not in found:
            found[kind.cls] = None
            for field in kind.fields:
                visit(field.type)
        for inner in _inner(kind):
            visit(inner)

    visit(types.type_info(struct))
    return list(found)


def _may_be_absent(field: msgspec.structs.FieldInfo) -> bool:
    return field.default is UNSET
