"""Addresses of lines on GitHub: ``https://github.com/OWNER/REPO/blob/REF/PATH#L10-L20``.

Nothing is fetched. An address is examined where it is of the repository that is checked: at a tag
or a commit that git has, with the file as it was there; at a branch, with the file of the checkout.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from overlapkit.skill.check.checkout import Checkout

ADDRESS = re.compile(
    r"https?://(?:www\.)?github\.com/(?P<repository>[\w.-]+/[\w.-]+)/(?:blob|blame)/"
    r"(?P<after>[^\s#?<>\"'`()\[\]]+/[^\s#?<>\"'`()\[\]]+)(?:\?[\w=&-]*)?"
    r"#L(?P<start>\d+)(?:C\d+)?(?:-L?(?P<end>\d+)(?:C\d+)?)?"
)
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


@dataclass(frozen=True)
class Address:
    """What an address names.

    Attributes:
        repository: ``owner/name``.
        after: the ref and the path, which only the repository can tell apart: a branch may have
            slashes in its name.
    """

    repository: str
    after: str


@dataclass(frozen=True)
class At:
    """A file of the checkout's repository at a ref.

    Attributes:
        path: of the file, relative to the checkout.
        ref: as the address has it.
        commit: what a tag or a commit's name means; None for a branch.
        absent: whether the ref is the name of a commit that git does not have.
    """

    path: str
    ref: str
    commit: str | None
    absent: bool = False


def address_of(match: re.Match[str]) -> Address:
    """What a match of `ADDRESS` names."""
    return Address(match["repository"], unquote(match["after"]))


def examined(address: Address, checkout: Checkout) -> At | None:
    """The file that an address means; None where it is not known to be of this repository.

    Where no remote of the checkout tells its repository, a path that it has is taken for its own.
    """
    remotes = checkout.git.remotes()
    if remotes and address.repository.lower() not in remotes:
        return None
    parts = address.after.split("/")
    splits = [("/".join(parts[:n]), "/".join(parts[n:])) for n in range(1, len(parts))]
    for ref, path in splits:
        commit = checkout.git.commit_of(ref, tags_only=not _COMMIT.fullmatch(ref))
        if commit is not None:
            return At(path, ref, commit)
    if _COMMIT.fullmatch(parts[0]):
        return At(splits[0][1], parts[0], None, absent=True) if remotes else None
    for ref, path in splits:
        if checkout.has(path):
            return At(path, ref, None)
    return At(splits[0][1], splits[0][0], None) if remotes else None
