"""Ranges of versions, and the stack that goes with a version."""

from __future__ import annotations

import pytest

from megatron.bridge.training.versions import (
    KNOWN,
    NEWEST,
    Range,
    Stack,
    as_version,
    complete,
    holds,
    spoken,
)


def test_a_range_begins_with_since_and_ends_before_until() -> None:
    fixed = Range("core", "0.16", "0.18.0")
    assert [fixed.contains(v) for v in ("0.15.3", "0.16.1", "0.17.1", "0.18.0", "main")] == [
        False,
        True,
        True,
        False,
        False,
    ]
    assert Range("core", until="0.18.0").contains("0.1")
    assert Range("core", since="0.18.0").contains("main")


def test_every_range_must_contain_its_version() -> None:
    both = (Range("bridge", since="0.5.1"), Range("core", until="0.19"))
    assert [holds(both, stack) for stack in KNOWN] == [False, False, True, False, False]
    assert not holds((Range("core", until="0.18.0"),), Stack())


@pytest.mark.parametrize(
    ("core", "bridge", "stack"),
    [
        (None, None, NEWEST),
        ("0.17.1", None, Stack("0.17.1", "0.4.2")),
        ("0.18.0", None, Stack("0.18.0", "0.5.1")),
        ("0.20.0rc0", None, Stack("0.20.0rc0", "main")),
        (None, "0.7.0rc0", Stack("0.20.0", "0.7.0rc0")),
        (None, "0.6.1", Stack("0.19.0", "0.6.1")),
        (None, "0.6.0", Stack("0.19.0", "0.6.0")),
        (None, "main", Stack("0.20.0", "main")),
        ("0.16.1", "0.6.0", Stack("0.16.1", "0.6.0")),
        ("0.12.0", None, Stack("0.12.0", "0.3.1")),
    ],
)
def test_what_is_not_given_is_what_goes_with_the_other(
    core: str | None, bridge: str | None, stack: Stack
) -> None:
    assert complete(core, bridge) == stack


def test_what_began_on_the_main_branch_holds_for_what_was_released_from_it() -> None:
    since_main = Range("bridge", since="main")
    versions = ("0.6.0", "0.6.1", "0.7.0rc0", "0.7.0", "main")
    assert [since_main.contains(v) for v in versions] == [False, False, True, True, True]
    assert [Range("bridge", until="main").contains(v) for v in versions] == [
        not since_main.contains(v) for v in versions
    ]


@pytest.mark.parametrize("text", ["0.18.0rc1", "0.18.0.dev3", "0.18.0+cu13", "core_v0.18.0"])
def test_a_pre_release_counts_as_its_release(text: str) -> None:
    assert Range("core", since="0.18.0").contains(text)


@pytest.mark.parametrize("text", ["v0.18.2", "core_v0.18.2", " 0.18.2"])
def test_tags_are_versions(text: str) -> None:
    assert as_version(text) == as_version("0.18.2")


def test_what_is_not_a_version_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'new' is not a version.*0\.18\.2"):
        as_version("new")


def test_words() -> None:
    assert str(Range("core", "0.16", "0.18.0")) == "megatron-core >= 0.16, < 0.18.0"
    assert str(Range("core", until="0.18.0")) == "megatron-core < 0.18.0"
    assert str(Stack("0.18.2", "0.5.1")) == "Megatron-Bridge 0.5.1 on megatron-core 0.18.2"
    assert spoken(["0.16.1", "0.17.1", "0.18.2"]) == "0.16.1, 0.17.1 and 0.18.2"
    assert spoken(["0.16.1"]) == "0.16.1"
