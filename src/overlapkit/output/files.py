"""Output files: checked before any work, written completely or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

from overlapkit.errors import InputError

Identity = tuple[int, int]
"""Device and inode of a file: the same for every hard link to it."""


@dataclass(frozen=True)
class Output:
    """A file that a command will write.

    Attributes:
        option: how messages introduce it, such as "--html".
        target: the file, as the user named it.
        within: the folder that a symbolic link must not leave; None means the folder of `target`.
    """

    option: str
    target: str
    within: Path | None = None

    def check(self, inputs: Iterable[str] = ()) -> Path:
        """The file to write, with symbolic links resolved.

        Args:
            inputs: names of the files that the command reads. Those that do not exist are ignored.

        Raises:
            InputError: it is not a regular file, it is one of the inputs, a symbolic link leads out
                of the folder, or the folder is missing or cannot be written to.
        """
        try:
            path, found = self._resolved()
            if found is not None and not stat.S_ISREG(found.st_mode):
                raise self._refused(f"is {_KINDS.get(stat.S_IFMT(found.st_mode), 'not a file')}")
            if self._is_input(path, found, inputs):
                raise self._refused("is also an input")
            self._check_permissions(path, found)
        except OSError as error:
            raise _failed(self, error) from None
        except ValueError as error:
            # A NUL, or a character that no file name can contain.
            raise self._refused(f"is not a file name ({error})") from None
        return path

    @contextmanager
    def stream(self) -> Iterator[IO[bytes]]:
        """A stream whose content replaces the file when the block ends without an exception.

        The content is compressed where the name ends in ``.gz``. A file that is replaced keeps its
        mode, and its owner where the system permits that.

        Raises:
            InputError: the file cannot be written.
        """
        path = self.check()
        # Named before it exists: whatever interrupts this function, the file is removed.
        aside = path.with_name(f".overlapkit-{os.urandom(8).hex()}")
        try:
            old = path.stat() if path.exists() else None
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            # A file that is replaced may be private: nobody else reads its successor meanwhile.
            with os.fdopen(os.open(aside, flags, 0o666 if old is None else 0o600), "wb") as plain:
                if old is not None:
                    with suppress(PermissionError):
                        os.fchown(plain.fileno(), old.st_uid, old.st_gid)
                    os.fchmod(plain.fileno(), stat.S_IMODE(old.st_mode))
                if self.target.endswith(".gz"):
                    from isal import igzip

                    packed = igzip.open(plain, "wb", compresslevel=2)  # type: ignore[no-untyped-call]
                    with cast("IO[bytes]", packed) as stream:
                        yield stream
                else:
                    yield plain
            if self.check() != path:
                raise self._refused("changed while it was being written")
            aside.replace(path)
        except OSError as error:
            raise _failed(self, error) from None
        finally:
            with suppress(OSError):
                aside.unlink(missing_ok=True)

    def write(self, text: str) -> None:
        """Replace the file's content by a text.

        Raises:
            InputError: the file cannot be written.
        """
        with self.stream() as stream:
            stream.write(text.encode("utf-8", "replace"))

    def _resolved(self) -> tuple[Path, os.stat_result | None]:
        """The file with symbolic links resolved, and what exists there."""
        if not self.target or self.target.endswith(os.sep):
            raise self._refused("is not a file name")
        path = Path(os.path.realpath(self.target))
        folder = Path(os.path.realpath(self.within or Path(self.target).absolute().parent))
        if not folder.is_dir():
            raise InputError(
                f"{self.option} {self.target}: the folder {folder} does not exist; create it first"
            )
        named = _lstat(self.target)
        linked = named is not None and stat.S_ISLNK(named.st_mode)
        if (linked or self.within is not None) and not path.is_relative_to(folder):
            how = "is a symbolic link to" if linked else "is"
            raise self._refused(f"{how} {path}, outside {folder}")
        return path, _lstat(path)

    def _is_input(self, path: Path, found: os.stat_result | None, inputs: Iterable[str]) -> bool:
        inputs = list(inputs)
        known = set() if found is None else {(found.st_dev, found.st_ino)}
        return bool(identities(inputs) & known) or str(path) in map(real_path, inputs)

    def _check_permissions(self, path: Path, found: os.stat_result | None) -> None:
        effective = os.access in os.supports_effective_ids
        if found is not None and not os.access(path, os.W_OK, effective_ids=effective):
            raise self._refused("is write-protected")
        # Imported here: most commands write no file.
        import tempfile

        # A mode does not show everything: the file system may be full, read-only or /proc.
        with tempfile.TemporaryFile(dir=path.parent):
            pass

    def _refused(self, what: str) -> InputError:
        remedy = "name another file" if self.within is None else "remove it first"
        return InputError(f"{self.option} {self.target}: {what}; {remedy}")


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFLNK: "a symbolic link that leads to itself",
}


def outputs(named: Mapping[str, str | None], inputs: Iterable[str]) -> list[Output | None]:
    """The output files of a command, checked before it does any work.

    Args:
        named: option to file, in the order of the result; None where the option was not given.
        inputs: names of the files that the command reads.

    Raises:
        InputError: one of them cannot be written, is an input, or is named by two options.
    """
    inputs = list(inputs)
    result: list[Output | None] = []
    seen: dict[Path | Identity, str] = {}
    for option, target in named.items():
        if target is None:
            result.append(None)
            continue
        output = Output(option, target)
        path = output.check(inputs)
        keys: list[Path | Identity] = [path, *identities([str(path)])]
        for same in keys:
            if same in seen:
                raise InputError(
                    f"{option} {target}: is the same file as {seen[same]}; name another file"
                )
            seen[same] = option
        result.append(output)
    return result


def identities(names: Iterable[str]) -> set[Identity]:
    """Device and inode of those files that exist."""
    found = set()
    for name in names:
        with suppress(OSError, ValueError):
            status = os.stat(name)  # noqa: PTH116 - a name that is not a path is ignored
            found.add((status.st_dev, status.st_ino))
    return found


def check_rewritable(option: str, name: str) -> None:
    """Refuse to change a user's own file that is not a plain, writable one at its own place.

    Args:
        option: how messages introduce it, such as "--fix".
        name: the file, as the user named it.

    Raises:
        InputError: it is a symbolic link or is below one (but for the folders of an absolute path),
            it is no regular file, or it or its folder is write-protected.
    """
    path = Path(name)
    parts = [path] if path.is_absolute() else [path, *path.parents]
    for part in parts:
        found = _lstat(part)
        if found is not None and stat.S_ISLNK(found.st_mode):
            raise InputError(
                f"{option} {name}: {part} is a symbolic link, which is not written through; name "
                f"the file itself: {os.path.realpath(name)}"
            )
    output = Output(option, name)
    output.check()
    found = _lstat(name)
    if found is None:
        raise InputError(f"{option} {name}: no such file")
    for each, mode in ((name, found.st_mode), (path.parent, path.parent.stat().st_mode)):
        # The system lets root write all the same.
        if not mode & 0o222:
            raise InputError(f"{option} {name}: {each} is write-protected; make it writable first")


def rewrite(option: str, name: str, before: bytes, after: bytes) -> None:
    """Change a user's own file, if it still has the content that was read.

    The file has the new content or the old one, whatever interrupts this.

    Args:
        option, name: as for `check_rewritable`.
        before: what was read.
        after: its new content.

    Raises:
        InputError: as `check_rewritable`, or the file changed since it was read.
    """
    check_rewritable(option, name)
    with Output(option, name).stream() as stream:
        stream.write(after)
        stream.flush()
        check_rewritable(option, name)
        if Path(name).read_bytes() != before:
            raise InputError(
                f"{option} {name}: changed while it was being fixed, and was not written; run it "
                "again"
            )


@dataclass(frozen=True)
class OutputFolder:
    """A folder that a command will fill: a new one, or one that is empty.

    Attributes:
        option: how messages introduce it, such as "--out".
        target: the folder, as the user named it.
    """

    option: str
    target: str

    def check(self) -> Path:
        """The folder.

        Raises:
            InputError: something else is there, the folder is not empty, or it cannot be created or
                written to.
        """
        import tempfile

        try:
            if not self.target:
                raise self._refused("is not a folder name")
            path = Path(self.target).absolute()
            found = _lstat(path)
            if found is None:
                if not path.parent.is_dir():
                    raise InputError(
                        f"{self.option} {self.target}: the folder {path.parent} does not exist; "
                        "create it first"
                    )
            elif not stat.S_ISDIR(found.st_mode):
                kind = "a symbolic link" if stat.S_ISLNK(found.st_mode) else "not a folder"
                raise self._refused(f"is {kind}")
            elif any(path.iterdir()):
                raise self._refused("is not empty")
            elif path.is_mount() or path.samefile(os.curdir):
                raise self._refused("is a mount point or the current folder, which stay")
            with tempfile.TemporaryFile(dir=path.parent if found is None else path):
                pass
        except OSError as error:
            raise _failed(self, error) from None
        except ValueError as error:
            raise self._refused(f"is not a folder name ({error})") from None
        return path

    @contextmanager
    def filled(self) -> Iterator[Path]:
        """A folder whose content becomes that of the target when the block ends.

        Raises:
            InputError: it cannot be written.
        """
        path = self.check()
        aside = path.with_name(f".overlapkit-{os.urandom(8).hex()}")
        try:
            aside.mkdir()
            yield aside
            if path.exists():
                aside.chmod(stat.S_IMODE(path.stat().st_mode))
            # Takes the place of an empty folder, and of nothing else.
            aside.rename(path)
        except OSError as error:
            raise _failed(self, error) from None
        finally:
            import shutil

            shutil.rmtree(aside, ignore_errors=True)

    def _refused(self, what: str) -> InputError:
        return InputError(f"{self.option} {self.target}: {what}; name a new folder")


def _failed(output: Output | OutputFolder, error: OSError) -> InputError:
    return InputError(f"{output.option} {output.target}: cannot be written: {error.strerror}")


def real_path(name: str) -> str:
    """A name with symbolic links resolved; a name that no file can have stays as it is."""
    try:
        return os.path.realpath(name)
    except ValueError:
        return name


def _lstat(path: str | Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None
