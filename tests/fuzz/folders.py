"""A folder whose content changes from input to input; what stays the same is not written again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.fuzz.odd import TEXTS


@dataclass(frozen=True, slots=True, kw_only=True)
class Special:
    """Something else than a file.

    Attributes:
        kind: ``link``, ``pipe`` or ``folder``.
        target: where a link leads.

    """

    kind: str
    target: str = ""


Files = Mapping[str, "bytes | Special"]
"""Path within the folder -> content."""


class Folder:
    """A folder that shows one set of files after the other."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._shown: dict[str, bytes | Special] = {}
        path.mkdir(parents=True, exist_ok=True)

    def show(self, files: Files) -> int:
        """Make the folder hold ``files`` and nothing else; return their bytes."""
        for name in [name for name, held in self._shown.items() if files.get(name) is not held]:
            self._remove(self.path / name)
            del self._shown[name]
        for name, content in files.items():
            if name not in self._shown and self._write(self.path / name, content):
                self._shown[name] = content
        return sum(len(content) for content in files.values() if isinstance(content, bytes))

    def _write(self, path: Path, content: bytes | Special) -> bool:
        """Write one file; a name that no file can have, or that another takes up, is left out."""
        if any(len(part) > 200 for part in path.parts):
            return False
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif content.kind == "link":
                path.symlink_to(content.target)
            elif content.kind == "pipe":
                os.mkfifo(path)
            else:
                path.mkdir()
        except (OSError, ValueError):
            return False
        return True

    def _remove(self, path: Path) -> None:
        """Remove a file, and the folders that it alone was in."""
        if not path.is_symlink() and path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
        with suppress(OSError):
            while path.parent != self.path:
                path = path.parent
                path.rmdir()


def _name(chance: Random, files: Files) -> str:
    return chance.choice(list(files))


def _gone(files: Files, chance: Random) -> tuple[Files, str]:
    name = _name(chance, files)
    return {one: data for one, data in files.items() if one != name}, f"without {name}"


def _renamed(files: Files, chance: Random) -> tuple[Files, str]:
    name = _name(chance, files)
    folder, slash, last = name.rpartition("/")
    word = _usable(chance.choice(TEXTS))
    new = chance.choice((f"{folder}{slash}{word}", f"{word}/{last}", last, f"{name}{word}", name.upper()))
    return {new if one == name else one: data for one, data in files.items()}, f"{name} -> {new!r:.80}"


def _usable(word: str) -> str:
    """Leave out what leads elsewhere: the fuzzer itself must not write there."""
    return word.replace("..", "_").replace("\0", "_").lstrip("/~")[:200] or "_"


def _more(files: Files, chance: Random) -> tuple[Files, str]:
    folder, slash, last = _name(chance, files).rpartition("/")
    new = f"{folder}{slash}{_usable(chance.choice(TEXTS))}{chance.choice(('', os.path.splitext(last)[1]))}"
    return {**files, new: chance.choice((b"", b"x", files[_name(chance, files)]))}, f"{new!r:.80} more"


def _exchanged(files: Files, chance: Random) -> tuple[Files, str]:
    one, other = _name(chance, files), _name(chance, files)
    return {**files, one: files[other], other: files[one]}, f"{one} <-> {other}"


def _cut_off(files: Files, chance: Random) -> tuple[Files, str]:
    name = _name(chance, files)
    data = files[name]
    if not isinstance(data, bytes):
        return _gone(files, chance)
    return {**files, name: data[: chance.choice((0, 1, 11, 12, 13, len(data) // 2, -1))]}, f"{name} cut off"


def _special(files: Files, chance: Random) -> tuple[Files, str]:
    name = _name(chance, files)
    targets = ("/etc/passwd", "/dev/zero", "..", ".", os.path.basename(name), "nowhere", "/", "a" * 300)
    kind = chance.choice(("link", "link", "pipe", "folder"))
    found = Special(kind=kind, target=chance.choice(targets) if kind == "link" else "")
    return {**files, name: found}, f"{name} is a {kind} {found.target:.40}"


_CHANGES: tuple[Callable[[Files, Random], tuple[Files, str]], ...] = (
    *(_gone, _renamed, _more, _exchanged, _cut_off, _special),
)


def changed(files: Files, chance: Random) -> tuple[Files, tuple[str, ...]]:
    """Return other files: one gone, more, renamed, exchanged, cut off, or none at all."""
    found, said = chance.choice(_CHANGES)(files, chance)
    return found, (said,)
