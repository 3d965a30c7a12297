"""The JSON Schemas and the reference tables, which are generated from the documents' Structs."""

from __future__ import annotations

import enum
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import pytest
from jsonschema import Draft202012Validator
from msgspec import Meta, Struct, inspect

from overlapkit.output.schema import (
    DOCUMENTS,
    document_type,
    json_schema,
    reference_tables,
    schema_file,
    schema_id,
    type_text,
)

DOCS = Path(__file__).parents[3] / "docs"
PAGES = "\n".join(page.read_text(encoding="utf-8") for page in sorted(DOCS.glob("json*.md")))
EVERY = pytest.mark.parametrize("name", list(DOCUMENTS))


class Inner(Struct, frozen=True, kw_only=True):
    x: int
    y: int | msgspec.UnsetType = msgspec.UNSET


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def definitions(name: str) -> dict[str, dict[str, Any]]:
    """Every object of a document that has fields, by its name."""
    schema = json_schema(name)
    return {
        title: each
        for title, each in {"": schema, **schema["$defs"]}.items()
        if "properties" in each
    }


@EVERY
def test_a_schema_is_valid_and_identifies_the_document(name: str) -> None:
    schema = json_schema(name)
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == Draft202012Validator.META_SCHEMA["$id"]
    assert schema["$id"] == schema["title"] == schema_id(name) == f"overlapkit/{name}/v1"
    assert schema["properties"]["schema"]["enum"] == [f"overlapkit/{name}/v1"]


@EVERY
def test_every_object_and_every_key_has_a_meaning(name: str) -> None:
    for title, each in definitions(name).items():
        # Without a docstring a Struct has one that msgspec makes up: its signature.
        assert each["description"] and not each["description"].startswith(f"{title}("), title
        for key, field in each["properties"].items():
            assert field.get("description", "").strip(), f"{title or name}.{key}"


@EVERY
def test_every_key_is_required_unless_its_type_allows_it_to_be_absent(name: str) -> None:
    for title, each in definitions(name).items():
        module = DOCUMENTS[name].partition(":")[0]
        assert "schema" in each["required"] or title, module
        assert set(each["required"]) <= set(each["properties"])


@EVERY
def test_the_committed_schema_is_what_the_command_prints(name: str, overlapkit: Any) -> None:
    printed = overlapkit("schema", name)
    assert printed.status == 0
    assert (DOCS / "schema" / schema_file(name)).read_text(encoding="utf-8") == printed.out
    assert json.loads(printed.out) == json_schema(name)


@EVERY
def test_a_page_describes_every_key(name: str) -> None:
    for line in reference_tables(name).splitlines():
        assert line in PAGES


@EVERY
def test_links_within_a_page_lead_to_a_heading(name: str) -> None:
    headings = {
        line.removeprefix("### ").lower().replace(" ", "-")
        for line in reference_tables(name).splitlines()
        if line.startswith("### ")
    }
    linked = {link.partition(")")[0] for link in reference_tables(name).split("](#")[1:]}
    assert linked <= headings


def test_the_command_lists_the_documents(overlapkit: Any) -> None:
    assert overlapkit("schema").out.split() == list(DOCUMENTS)


def test_an_unknown_document_is_one_line(overlapkit: Any) -> None:
    for name, hint in (("explian", "explain"), ("zzz", ", ".join(DOCUMENTS))):
        result = overlapkit("schema", name)
        assert (result.status, result.out) == (2, "")
        assert name in result.err and hint in result.err and result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("annotation", "text"),
    [
        (str, "string"),
        (int | None, "integer or null"),
        (int | float, "number"),
        (float | None, "number or null"),
        (bool, "boolean"),
        (Any, "any"),
        (Annotated[list[str], Meta(description="words")], "list of string"),
        (list[int | None], "list of (integer or null)"),
        (list[int] | None, "list of integer or null"),
        (tuple[int, ...], "list of integer"),
        (dict[str, Any], "object"),
        (dict[str, str], "object of string"),
        (dict[str, float | None], "object of (number or null)"),
        (list[Inner], "list of [inner](#inner)"),
        (Literal["a", "b"], "string"),
        (Literal[1, 2], "integer"),
        (Color, "string"),
    ],
)
def test_types_in_words(annotation: Any, text: str) -> None:
    assert type_text(inspect.type_info(annotation)) == text


def test_a_type_without_a_name_in_json_is_refused() -> None:
    with pytest.raises(ValueError, match="not a type"):
        type_text(inspect.type_info(bytes))


def test_tables_of_a_struct(monkeypatch: pytest.MonkeyPatch) -> None:
    class ToyDocument(Struct, frozen=True, kw_only=True):
        schema: Annotated[Literal["overlapkit/toy/v2"], Meta(description="the name")] = (
            "overlapkit/toy/v2"
        )
        mode: Annotated[Literal["on", "off"], Meta(description="`on`: it runs")]
        color: Annotated[Color | None, Meta(description="red | blue")]
        started: Annotated[Inner | msgspec.UnsetType, Meta(description="when")] = msgspec.field(
            name="from", default=msgspec.UNSET
        )

    monkeypatch.setitem(DOCUMENTS, "toy", "")
    monkeypatch.setattr("overlapkit.output.schema.document_type", lambda _: ToyDocument)
    table, _, inner = reference_tables("toy").partition("\n\n### Inner\n")
    assert table.splitlines()[2:] == [
        "| `schema` | string | the name; `overlapkit/toy/v2` |",
        "| `mode` | string | `on`: it runs; one of `off`, `on` |",
        r"| `color` | string or null | red \| blue; one of `red`, `blue` |",
        "| `from` | [inner](#inner), may be absent | when |",
    ]
    assert "| `y` | integer, may be absent |" in inner
    assert schema_file("toy") == "toy.v2.json"
    schema = json_schema("toy")
    assert schema["required"] == ["schema", "mode", "color"]
    assert schema["$defs"]["Inner"]["required"] == ["x"]
    valid = {"schema": "overlapkit/toy/v2", "mode": "on", "color": None}
    assert Draft202012Validator(schema).is_valid(valid)
    assert not Draft202012Validator(schema).is_valid(valid | {"mode": "maybe"})


def test_a_document_is_its_struct() -> None:
    assert all(issubclass(document_type(name), Struct) for name in DOCUMENTS)
