"""What tells one input, or one capture, from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

from apr_falsify.capture import Request
from apr_falsify.errors import ModelError
from apr_falsify.geometry import Geometry
from apr_falsify.trace import Trace, sha256_of


def model_sha256(files: tuple[Path, ...]) -> str:
    """Return the digest of a model's weight files.

    Of one file it is that file's sha256; of several the sha256 of the lines ``<sha256>  <name>``, sorted
    by name, as ``sha256sum`` prints them. Within one process a file is read once while it is unchanged.

    Raises:
        ModelError: a file cannot be read.

    """
    try:
        with ThreadPoolExecutor() as pool:
            digests = list(pool.map(_digest_of, files))
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=error.filename) from error
    if len(files) == 1:
        return digests[0]
    named = sorted(zip((file.name for file in files), digests, strict=True))
    lines = "".join(f"{digest}  {name}\n" for name, digest in named)
    return hashlib.sha256(lines.encode()).hexdigest()


def _digest_of(file: Path) -> str:
    stat = file.stat()
    return _cached_digest(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _cached_digest(file: Path, size: int, mtime_ns: int) -> str:
    return sha256_of(file)


def difference(
    trace: Trace, request: Request, geometry: Geometry, wanted: Mapping[str, object]
) -> str | None:
    """Say how ``trace`` is not the capture of ``request``, ``None`` where it is.

    Args:
        trace: a capture made before.
        request: tokens, layers and stages asked for now.
        geometry: the model's geometry.
        wanted: the fields of its provenance that must be equal, by name.

    """
    for name, value in wanted.items():
        found = getattr(trace.provenance, name)
        if found != value:
            return f"{name} is {found}, wanted {value}"
    if trace.tokens != request.tokens:
        return f"tokens are {list(trace.tokens)}, wanted {list(request.tokens)}"
    missing = [key for key in request.keys(geometry) if key not in trace.stages]
    return f"{len(missing)} of the wanted stages are not in it" if missing else None
