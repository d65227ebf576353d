"""The files of a bundle, from a directory or a zip, read whole into memory under strict bounds.

What does not belong into a bundle is a problem with a code, never an exception and never followed: links,
pipes, names that leave the bundle, names that no version of the format has, sizes beyond all measure.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apr_falsify.errors import EvidenceError
from apr_falsify.reading import opened_zip, parse_json, unzipping

BUNDLE = "bundle.json"
CLAIM = "claim.json"
BISECTION = "bisection.json"
JUNIT = "junit.xml"
REPORT = "report.html"
STATEMENT = "statement.json"
ENVELOPE = "statement.dsse.json"
SIDES = ("oracle", "subject")
REQUIRED = (BUNDLE, CLAIM, JUNIT, STATEMENT)

MOST_BYTES = 64 * 2**20
"""What the files of one bundle may hold together; a bundle is meant to be below 3 MB."""

_UNPACKED = 6 * 2**20
"""What a zip may hold beyond twice its own size: reports and statements shrink to a tenth, values hardly."""

MOST_FILES = 4096

_LAYER = r"layer-(?:0|[1-9][0-9]{0,9})"
_CONTROL = r"controls/[A-Za-z0-9][A-Za-z0-9._\[\]-]{0,119}"
_NAMES = re.compile(
    rf"(?:bundle|claim|bisection|statement|statement\.dsse)\.json|junit\.xml|report\.html"
    rf"|(?:oracle|subject)/(?:trace\.json|(?:{_LAYER}/)?[a-z_]{{1,64}}\.bin)|{_CONTROL}/bisection\.json"
)
_FOLDERS = re.compile(rf"controls|{_CONTROL}|(?:oracle|subject)(?:/{_LAYER})?")


REPLAY_DIFFERS = "replay-differs"
"""The code of a figure that today's replay gives otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleProblem:
    """One thing that is wrong with a bundle.

    Attributes:
        code: what it is, stable, in kebab-case.
        file: the file of the bundle that it concerns; empty for the bundle as a whole.
        message: what was found and what was expected, for people.

    """

    code: str
    file: str
    message: str

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        return {"code": self.code, "file": self.file, "message": self.message}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """The files of a bundle.

    Attributes:
        path: where it lies.
        files: name -> bytes; what could not be read is not there.
        problems: what does not belong into a bundle, or could not be read.

    """

    path: Path
    files: Mapping[str, bytes]
    problems: tuple[BundleProblem, ...] = ()

    @property
    def digests(self) -> dict[str, str]:
        """The sha256 of every file, by name, in order of names."""
        return {name: sha256(self.files[name]) for name in sorted(self.files)}


def sha256(data: bytes) -> str:
    """Return the sha256 of ``data`` in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def json_bytes(value: object) -> bytes:
    """Return the one text in which a bundle holds a JSON object: keys sorted, indented by one blank.

    Raises:
        ValueError: NaN or an infinity, which JSON cannot hold.

    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def is_name(name: str) -> bool:
    """Whether the format has a file of that name."""
    return _NAMES.fullmatch(name) is not None


def load_json(files: Mapping[str, bytes], name: str) -> Any:
    """Return the content of a JSON file.

    Raises:
        ValueError: not UTF-8, no JSON, nested too deeply, or a key stands twice in one object.

    """
    return parse_json(files[name].decode("utf-8"))


def read_contents(path: Path) -> Contents:
    """Read the bundle at ``path``, a directory or a zip of one.

    Raises:
        EvidenceError: there is nothing, or it is no bundle at all.

    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EvidenceError(f"cannot be read: {reason}", where=path, expected="a bundle") from error
    if stat.S_ISDIR(mode):
        found = _gathered(path, _of_directory(path))
    elif stat.S_ISREG(mode):
        found = _of_zip(path)
    else:
        raise EvidenceError("is neither a directory nor a file", where=path, expected="a bundle")
    if BUNDLE not in found.files and STATEMENT not in found.files and not _named(found.problems):
        raise EvidenceError(
            f"is no bundle: it has neither {BUNDLE} nor {STATEMENT}",
            where=path,
            expected="a directory that a falsifier wrote with --evidence-dir, or a zip of it",
            remedy=f"name the bundles in it: {path / '*'}" if any(path.glob(f"*/{STATEMENT}")) else "",
        )
    return found


def _named(problems: tuple[BundleProblem, ...]) -> bool:
    """Whether a file that makes a bundle is there, though it could not be read."""
    return any(problem.file in (BUNDLE, STATEMENT) for problem in problems)


_Entry = tuple[str, bytes | BundleProblem]


def _gathered(path: Path, entries: Iterator[_Entry]) -> Contents:
    files: dict[str, bytes] = {}
    problems: list[BundleProblem] = []
    for name, found in entries:
        if isinstance(found, BundleProblem):
            problems.append(found)
        else:
            files[name] = found
    return Contents(path=path, files=files, problems=tuple(problems))


def _of_directory(root: Path) -> Iterator[_Entry]:
    left, count = MOST_BYTES, 0
    pending = [""]
    while pending:
        folder = pending.pop()
        try:
            entries = sorted(os.scandir(root / folder), key=lambda entry: entry.name)
        except OSError as error:
            yield folder, BundleProblem(code="unreadable-file", file=folder, message=str(error.strerror))
            continue
        for entry in entries:
            count += 1
            name = f"{folder}/{entry.name}" if folder else entry.name
            if count > MOST_FILES:
                message = f"more than {MOST_FILES} files: the rest was not read"
                yield name, BundleProblem(code="too-many-files", file="", message=message)
                return
            if entry.is_dir(follow_symlinks=False) and _FOLDERS.fullmatch(name):
                pending.append(name)
                continue
            found = _misplaced(name, entry) or _read(root / name, name, left)
            left -= len(found) if isinstance(found, bytes) else 0
            yield name, found


def _misplaced(name: str, entry: os.DirEntry[str]) -> BundleProblem | None:
    if entry.is_symlink():
        return BundleProblem(
            code="symlink", file=_shown(name), message="is a link; a bundle holds files alone"
        )
    if entry.is_file(follow_symlinks=False) and is_name(name):
        return None
    if not entry.is_file(follow_symlinks=False) and not entry.is_dir(follow_symlinks=False):
        return BundleProblem(code="not-a-regular-file", file=_shown(name), message="is a pipe or a device")
    return _foreign(name)


def _foreign(name: str) -> BundleProblem:
    try:
        name.encode()
    except UnicodeEncodeError:
        return BundleProblem(code="name-not-utf8", file=_shown(name), message="its name is not UTF-8")
    return BundleProblem(
        code="unexpected-file",
        file=_shown(name),
        message="is extra: no bundle has a file of that name; delete it",
    )


def _shown(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode().encode("unicode_escape").decode()[:300]


def _read(path: Path, name: str, left: int) -> bytes | BundleProblem:
    try:
        # Not followed and not waited for, should a link or a pipe have taken its place meanwhile.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                return BundleProblem(code="not-a-regular-file", file=name, message="is no regular file")
            data = file.read(left + 1) if status.st_size <= left else None
    except OSError as error:
        return BundleProblem(code="unreadable-file", file=name, message=f"cannot be read: {error.strerror}")
    return _too_large(name) if data is None or len(data) > left else data


def _too_large(name: str) -> BundleProblem:
    message = (
        f"it was not read: the bundle would be larger than {MOST_BYTES >> 20} MiB, "
        f"or than twice its zip and {_UNPACKED >> 20} MiB"
    )
    return BundleProblem(code="too-large", file=name, message=message)


def _of_zip(path: Path) -> Contents:
    try:
        with opened_zip(path, MOST_FILES) as archive:
            return _gathered(path, _members(archive))
    except (OSError, ValueError) as error:
        if not _begins_as_zip(path):
            raise EvidenceError(
                "is neither a directory nor a zip",
                where=path,
                expected="a bundle: a directory, or a zip of one",
                remedy="name the bundle's folder; unpack an archive of another kind",
            ) from error
        raise EvidenceError(
            f"is no whole zip: {error}",
            where=path,
            expected="a bundle: a directory, or a zip of one",
            remedy="fetch it again; a copy that was cut off cannot be opened",
        ) from error


def _begins_as_zip(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(2) == b"PK"
    except OSError:
        return True  # what reading it raised tells more


def _members(archive: zipfile.ZipFile) -> Iterator[_Entry]:
    members = archive.infolist()
    if len(members) > MOST_FILES:
        message = f"{len(members)} files; at most {MOST_FILES} are read"
        yield "", BundleProblem(code="too-many-files", file="", message=message)
        return
    top = _top_folder([member.filename for member in members])
    left, seen = min(MOST_BYTES, 2 * os.path.getsize(str(archive.filename)) + _UNPACKED), set()
    for member in members:
        name = member.filename.removeprefix(top)
        if member.filename.endswith("/") and (
            top.startswith(member.filename) or _FOLDERS.fullmatch(name.rstrip("/"))
        ):
            continue
        if name in seen:
            yield name, BundleProblem(code="duplicate-name", file=_shown(name), message="is in the zip twice")
            continue
        seen.add(name)
        found = _unfit(member, name) or _unpacked(archive, member, name, left)
        left -= len(found) if isinstance(found, bytes) else 0
        yield name, found


def _top_folder(names: list[str]) -> str:
    """Return the folder that the bundle lies in, where it was packed with its own folder and those around."""
    found = {
        name.removesuffix(one) for one in (STATEMENT, BUNDLE) for name in names if name.endswith(f"/{one}")
    }
    bare = STATEMENT in names or BUNDLE in names or len(found) != 1
    return "" if bare else found.pop()


def _unfit(member: zipfile.ZipInfo, name: str) -> BundleProblem | None:
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind == stat.S_IFLNK:
        return BundleProblem(
            code="symlink", file=_shown(name), message="is a link; a bundle holds files alone"
        )
    if kind not in (0, stat.S_IFREG):
        return BundleProblem(code="not-a-regular-file", file=_shown(name), message="is no regular file")
    if name.startswith("/") or "\\" in name or ".." in name.split("/"):
        return BundleProblem(
            code="path-leaves-bundle", file=_shown(name), message="its name leaves the bundle"
        )
    return None if is_name(name) else _foreign(name)


def _unpacked(
    archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, left: int
) -> bytes | BundleProblem:
    if member.file_size > left:
        return _too_large(name)
    try:
        with unzipping(), archive.open(member) as file:
            data = file.read(left + 1)
    except (OSError, ValueError) as error:
        return BundleProblem(code="unreadable-file", file=name, message=f"cannot be unpacked: {error}")
    return _too_large(name) if len(data) > left else data
