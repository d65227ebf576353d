"""Models by their hub id: fetched through huggingface_hub, only what a capture reads."""

from __future__ import annotations

import re
from pathlib import Path

from apr_falsify.errors import MissingDependencyError, ModelError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"[0-9a-f]{40}")
_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
"""What is fetched: never code, never pickled weights."""


def resolve(name: str) -> Path:
    """Return the path that ``name`` names: itself where it exists, else a hub id's local copy.

    A hub id is fetched into huggingface_hub's own cache, where it is found again without a network.

    Raises:
        ModelError: neither a path nor a hub id, or the hub does not give it (offline, unknown, private).
        MissingDependencyError: huggingface_hub is not installed.

    """
    path = Path(name)
    if path.exists():
        return path
    if not is_hub_id(name):
        raise ModelError(
            "no such file or directory",
            where=name,
            expected="a HuggingFace model directory, a .gguf file, or a hub id like Qwen/Qwen2.5-0.5B",
        )
    return _fetch(name)


def is_hub_id(name: str) -> bool:
    """Whether ``name`` has the form of a hub id."""
    return _HUB_ID.fullmatch(name) is not None


def id_of(name: str) -> str | None:
    """Return the hub id that ``name`` is or whose snapshot it is, ``None`` for any other path.

    A snapshot is ``models--OWNER--NAME/snapshots/REVISION`` of huggingface_hub's cache: only there does a
    folder's place say what was fetched into it, and in which revision. A config's ``_name_or_path`` says
    what somebody called it.
    """
    path = Path(name)
    if is_hub_id(name) and not path.exists():
        return name
    parts = path.parts[-3:]
    if len(parts) < 3 or parts[1] != "snapshots" or not _REVISION.fullmatch(parts[2]):
        return None
    kind, *names = parts[0].split("--")  # no hub id has two dashes in a row
    found = "/".join(names)
    return found if kind == "models" and is_hub_id(found) else None


def kept(name: str) -> Path | None:
    """Return the local copy of the hub id ``name``, ``None`` where there is none; nothing is fetched."""
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS), local_files_only=True))
    except (ImportError, OSError, ValueError):
        return None


def _fetch(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError
    except ImportError as error:
        raise MissingDependencyError(
            f"a hub id needs huggingface_hub ({error})",
            where=name,
            remedy="pip install 'apr-falsify[oracle]', or give a local directory",
        ) from error
    try:
        return Path(snapshot_download(name, allow_patterns=list(_PATTERNS)))
    except HfHubHTTPError as error:  # unknown, private, gated, or a revision that is not there
        raise ModelError(
            f"the hub does not give it: {_first_line(error)}",
            where=name,
            expected="a public model of that id, or one that this machine is logged in for",
            remedy="check the spelling, or log in with `hf auth login`",
        ) from error
    except (OSError, ValueError, RuntimeError) as error:  # offline and not in the cache, or cut off
        raise ModelError(
            f"no such path here, and the hub cannot be reached: {_first_line(error)}",
            where=name,
            expected="an existing path, a model in huggingface_hub's cache, or a network",
            remedy=f"on a machine with a network: hf download {name} --local-dir DIR, then give DIR",
        ) from error


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
