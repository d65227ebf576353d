"""Models by their hub id: fetched through huggingface_hub, only what a capture reads."""

from __future__ import annotations

from pathlib import Path

from apr_falsify.errors import MissingDependencyError, ModelError
from apr_falsify.portable import is_hub_id

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


def local_copy(name: str) -> Path | None:
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
