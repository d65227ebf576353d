"""Names for what is committed or handed on: no path of this machine stands in them.

A model is named by the first of these that it has:

1. a hub id with its revision, where it lies in huggingface_hub's cache: ``OWNER/NAME@REVISION``;
2. a place in this package: ``apr_falsify/data/tiny-qwen2``;
3. a path relative to the project: the git checkout around the current directory, else that directory;
4. the name of its folder or file with the first digits of its digest: ``NAME@sha256:DIGITS``.

Whether two models are the same is decided by their digests (``model_sha256``), never by their names.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

PACKAGE = Path(__file__).resolve().parent

_DIGITS = 12
"""How many digits of a digest stand behind a name: enough to tell files apart, the trace holds all 64."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[0-9a-f]{40}")
_ABSOLUTE = re.compile(r"(?<![\w.~/-])(/[^\s/:;,'\"`()\[\]{}<>|]+)/[^\s:;,'\"`()\[\]{}<>|]*")
"""An absolute path in a text; its first folder is the group."""


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form of a hub id."""
    return _HUB_ID.fullmatch(name) is not None


def id_of(name: str) -> str | None:
    """Return the hub id that ``name`` is, with or without a revision, or whose snapshot it is; else ``None``.

    A snapshot is ``models--OWNER--NAME/snapshots/REVISION`` of huggingface_hub's cache: only there does a
    folder's place say what was fetched into it, and in which revision. A config's ``_name_or_path`` says
    what somebody called it.
    """
    found = _hub_name(name)
    if found is not None and not Path(name).exists():
        return found
    snapshot = _snapshot(PurePath(name))
    return None if snapshot is None else snapshot[0]


def _hub_name(name: str) -> str | None:
    """Return the hub id in ``OWNER/NAME`` or ``OWNER/NAME@REVISION``, ``None`` of another form."""
    found, at, revision = name.partition("@")
    return found if is_hub_id(found) and (not at or _REVISION.fullmatch(revision)) else None


def _snapshot(path: PurePath) -> tuple[str, str] | None:
    """Return hub id and revision of a snapshot in huggingface_hub's cache, ``None`` for any other path."""
    parts = path.parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not _REVISION.fullmatch(parts[2]):
        return None
    kind, *names = parts[0].split("--")  # no hub id has two dashes in a row
    found = "/".join(names)
    return (found, parts[2]) if kind == "models" and is_hub_id(found) else None


def model_name(path: Path, sha256: Callable[[], str]) -> str:
    """Return the name of the model at ``path``, as this module's head says.

    Args:
        path: the model's folder or file.
        sha256: gives the digest of its weights; called only where the name needs it.

    """
    snapshot = _snapshot(path) or _snapshot(path.resolve())
    if snapshot is not None:
        return "@".join(snapshot)
    in_package = _inside(path, PACKAGE)
    if in_package:
        return f"{PACKAGE.name}/{in_package}"
    project = project_folder()
    in_project = None if project is None else _inside(path, project)
    if in_project:  # a folder of the project must not pass for the model of the hub that it is named after
        return f"./{in_project}" if _hub_name(in_project) else in_project
    return _with_digest(os.path.basename(os.path.abspath(path)), sha256())


def stated_name(name: str, sha256: str | None) -> str:
    """Return the name of a model as a trace states it, without the path that earlier versions put there."""
    for path in (PurePosixPath(name), PureWindowsPath(name)):
        if path.is_absolute():
            snapshot = _snapshot(path)
            return "@".join(snapshot) if snapshot else _with_digest(path.name, sha256)
    return name


def _with_digest(name: str, sha256: str | None) -> str:
    return f"{name}@sha256:{sha256[:_DIGITS]}" if sha256 else name


def project_folder() -> Path | None:
    """Return the git checkout around the current directory, else that directory; ``None`` for the root."""
    here = Path.cwd()
    folders = [folder for folder in (here, *here.parents) if folder != Path(folder.anchor)]
    return next((folder for folder in folders if (folder / ".git").exists()), next(iter(folders), None))


def _inside(path: Path, folder: Path) -> str | None:
    """Return ``path`` relative to ``folder``, as it is named or where its links lead; ``None`` outside."""
    for place in (Path(os.path.abspath(path)), path.resolve()):
        if place != folder and place.is_relative_to(folder):
            return place.relative_to(folder).as_posix()
    return None


def portable_path(path: str, folder: Path) -> str:
    """Return ``path`` relative to ``folder``, one outside of it as ``.../NAME``; a relative one stays."""
    if not os.path.isabs(path):
        return path
    return _inside(Path(path), folder) or f".../{os.path.basename(path.rstrip(os.sep))}"


def portable_text(text: str) -> str:
    """Return ``text`` with its absolute paths shortened.

    A path in the project becomes relative to it, one in the home directory begins with ``~``, and of any
    other its last part is left behind ``.../``. What begins like a path and whose first folder is not on
    this machine is none: names of arrays look like that.
    """
    project = project_folder()
    for folder, short in ((project and str(project), "."), (os.path.expanduser("~"), "~")):
        if folder and folder != os.sep:
            text = re.sub(rf"(?<![\w.~/-]){re.escape(folder)}(?![\w.-])", short, text)
    return _ABSOLUTE.sub(_shortened, text)


def _shortened(match: re.Match[str]) -> str:
    if not os.path.isdir(match[1]):
        return match[0]
    return f".../{os.path.basename(match[0].rstrip('/'))}"
