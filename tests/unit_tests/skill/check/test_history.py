"""Anchors follow moves, renames and edits of a repository with a history."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from support.repository import CODE, Repository

States = Callable[..., list[str]]
QUOTED = """\
```6:8:src/gate.py
        if config.tp_size < 2:
            logging.warning("TP size below 2")
            return False
```
"""
FORMS = {
    "line": "The selection is at `src/gate.py:15`.\n",
    "lines": "The selection (src/gate.py:15-16) decides.\n",
    "fragment": "See [the selection](src/gate.py#L15-L16).\n",
    "one line": "See src/gate.py#L15 for it.\n",
}


@pytest.fixture(params=[QUOTED, *FORMS.values()], ids=["quoted", *FORMS])
def page(request: pytest.FixtureRequest, repository: Repository) -> str:
    """A page with one anchor in each form, committed with the code."""
    repository.write("page.md", request.param)
    repository.commit()
    return str(request.param)


def text(repository: Repository) -> str:
    return (repository.root / "page.md").read_text(encoding="utf-8")


def test_right_where_nothing_moved(page: str, states: States) -> None:
    assert states() == ["right"]


def test_moved_down_is_found_and_written_anew(
    page: str, repository: Repository, states: States
) -> None:
    repository.write("src/gate.py", "# one\n# two\n" + CODE)
    assert states() == ["moved"]
    assert states("--fix") == ["right"]
    changed = page.replace("15", "17").replace("16", "18")
    if page == QUOTED:
        changed = page.replace("6:8:", "8:10:")
    assert text(repository) == changed
    repository.commit()
    assert states() == ["right"]


def test_moved_within_the_file_past_other_code(
    page: str, repository: Repository, states: States
) -> None:
    start = CODE.index("    def select")
    first = CODE.index("    def decide")
    swapped = CODE[:first] + CODE[start:] + "\n" + CODE[first:start].rstrip() + "\n"
    repository.write("src/gate.py", swapped)
    repository.commit()
    assert states() == ["moved"]
    states("--fix")
    lines = swapped.splitlines()
    number = lines.index("        if config.tp_size < 2:") + 1
    if page != QUOTED:
        number = lines.index("        if pp_size > 1 and vp_size > 1:") + 1
    assert str(number) in text(repository)


def test_renamed_file_is_followed(page: str, repository: Repository, states: States) -> None:
    repository.git("mv", "src/gate.py", "src/overlap_gate.py")
    repository.commit()
    assert states() == ["moved"]
    assert states("--fix") == ["right"]
    assert text(repository) == page.replace("src/gate.py", "src/overlap_gate.py")


def test_renamed_and_moved_is_followed(page: str, repository: Repository, states: States) -> None:
    (repository.root / "src/gate.py").unlink()
    repository.write("src/new/gate.py", "# one more line\n" + CODE)
    repository.commit()
    assert states("--fix") == ["right"]
    assert "src/new/gate.py" in text(repository)
    assert ("7:9:" in text(repository)) == (page == QUOTED)


def test_a_link_from_the_page_stays_one(repository: Repository, states: States) -> None:
    file = repository.write("docs/page.md", "[x](../src/gate.py#L15-L16)\n")
    repository.commit()
    repository.write("src/gate.py", "# one\n" + CODE)
    assert states("--fix") == ["right"]
    assert file.read_text() == "[x](../src/gate.py#L16-L17)\n"
    repository.commit()
    repository.git("mv", "src/gate.py", "src/new.py")
    repository.commit()
    assert states("--fix") == ["right"]
    assert file.read_text() == "[x](../src/new.py#L16-L17)\n"


def test_quoted_lines_that_went_to_another_file_are_followed(
    repository: Repository, states: States
) -> None:
    repository.write("page.md", QUOTED)
    repository.write("src/gate.py", "def other(x):\n    return [y for y in x]\n")
    repository.write("src/rules.py", "#\n" + CODE)
    assert states("--fix") == ["right"]
    assert text(repository) == QUOTED.replace("6:8:src/gate.py", "7:9:src/rules.py")


def test_a_renamed_file_whose_quoted_line_was_edited_is_changed(
    repository: Repository, states: States
) -> None:
    repository.write("page.md", QUOTED)
    repository.commit()
    repository.git("mv", "src/gate.py", "src/new.py")
    repository.write("src/new.py", CODE.replace("below 2", "below two"))
    repository.commit()
    assert states("--fix") == ["changed"]
    assert text(repository) == QUOTED


def test_deleted_file_is_gone(page: str, repository: Repository, states: States) -> None:
    repository.git("rm", "--quiet", "src/gate.py")
    repository.commit()
    assert states() == ["gone"]


def test_quoted_line_that_was_edited_is_changed(repository: Repository, states: States) -> None:
    repository.write("page.md", QUOTED)
    repository.write("src/gate.py", "# one\n" + CODE.replace("below 2", "below two"))
    assert states() == ["changed"]
    assert states("--fix") == ["changed"]
    assert text(repository) == QUOTED


def test_quoted_lines_that_were_deleted_are_gone(repository: Repository, states: States) -> None:
    repository.write("page.md", QUOTED)
    repository.write("src/gate.py", "def other(x):\n    return [y for y in x]\n")
    assert states() == ["gone"]


def test_unquoted_line_edited_in_its_place_is_right(repository: Repository, states: States) -> None:
    repository.write("page.md", FORMS["lines"])
    repository.commit()
    repository.write("src/gate.py", CODE.replace('"overlapped"', '"in parallel"'))
    assert states() == ["right"]


def test_unquoted_lines_that_were_deleted_are_gone(repository: Repository, states: States) -> None:
    repository.write("page.md", FORMS["lines"])
    repository.commit()
    repository.write("src/gate.py", CODE[: CODE.index("    def select")])
    assert states() == ["gone"]


def test_a_page_that_is_not_committed_is_checked_by_its_numbers(
    repository: Repository, states: States
) -> None:
    repository.write("page.md", "src/gate.py:15 and src/gate.py:99\n")
    assert states() == ["right", "gone"]


def test_a_name_without_folders_may_mean_another_repository(
    repository: Repository, states: States
) -> None:
    repository.write("page.md", "gate.py:15 and gate.py:1907 and other.py:3\n")
    assert states() == ["right", "unknown", "unknown"]
    repository.write("page.md", "gate.py:15\n")
    repository.commit()
    repository.write("src/gate.py", "x = 1\n")
    assert states() == ["gone"]


def test_several_places_are_not_chosen_from(repository: Repository, states: States) -> None:
    page = '```2:2:src/twice.py\n    return "the same line"\n```\n'
    repository.write("page.md", page)
    repository.write(
        "src/twice.py", '#\n#\n    return "the same line"\n#\n    return "the same line"\n'
    )
    assert states("--fix") == ["moved"]
    assert text(repository) == page


def test_history_chooses_between_several_places(repository: Repository, states: States) -> None:
    repository.write("page.md", '```3:3:src/twice.py\n    return "the same line"\n```\n')
    repository.write("src/twice.py", 'one\ntwo\n    return "the same line"\nthree\n')
    repository.commit()
    line = '    return "the same line"\n'
    repository.write("src/twice.py", f"one\nnew\nnew\n{line}one\ntwo\n{line}three\nfour\n")
    repository.commit()
    assert states("--fix") == ["right"]
    assert text(repository).startswith("```7:7:")


def test_a_submodule_that_is_not_checked_out_is_not_known(
    repository: Repository, states: States
) -> None:
    repository.write(".gitmodules", '[submodule "x"]\n\tpath = 3rdparty/x\n\turl = ../x\n')
    repository.write("page.md", "```1:1:3rdparty/x/a.py\nx = 1\n```\n")
    assert states() == ["unknown"]


def test_without_git_quotations_are_checked_alike(repository: Repository, states: States) -> None:
    repository.write("page.md", QUOTED + "\nsrc/gate.py:15\n")
    repository.write("src/gate.py", "\n" + CODE)
    (repository.root / ".git").rename(repository.root.parent / "put-away")
    assert states("--root", str(repository.root)) == ["moved", "right"]
