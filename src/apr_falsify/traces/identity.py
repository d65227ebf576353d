"""What tells one input, or one capture, from another."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

from apr_falsify import __version__
from apr_falsify.errors import ModelError
from apr_falsify.model.families.of_users import file_of
from apr_falsify.model.shape import Geometry
from apr_falsify.portable import model_name
from apr_falsify.traces.capture import Request
from apr_falsify.traces.trace import Trace, sha256_of


def model_sha256(files: tuple[Path, ...]) -> str:
    """Return the digest of a model's weight files.

    Of one file it is that file's sha256; of several the sha256 of the lines ``<sha256>  <name>``, sorted
    by name, as ``sha256sum`` prints them. Within one process a file is read once while it is unchanged.

    Raises:
        ModelError: a file cannot be read.

    """
    try:
        digests = [digest.result() for digest in start_hashing(files)]
    except OSError as error:
        raise ModelError(f"cannot be read: {error.strerror}", where=error.filename) from error
    if len(files) == 1:
        return digests[0]
    named = sorted(zip((file.name for file in files), digests, strict=True))
    lines = "".join(f"{digest}  {name}\n" for name, digest in named)
    return hashlib.sha256(lines.encode()).hexdigest()


def name_of(path: Path, files: tuple[Path, ...]) -> str:
    """Return the name of the model at ``path`` for a trace; see :mod:`apr_falsify.portable`.

    Args:
        path: its folder or file.
        files: its weight files, read only where no place of it that is known elsewhere names it.

    Raises:
        ModelError: a file cannot be read.

    """
    return model_name(path, lambda: model_sha256(files))


def settings_of(attention: str, batch: int) -> dict[str, str]:
    """Return what a run of transformers says of how it was run, beyond its usual way."""
    said = {"attention": attention} if attention != "eager" else {}
    return {**said, **({"batch": str(batch)} if batch > 1 else {})}


def start_hashing(files: tuple[Path, ...]) -> list[Future[str]]:
    """Start to read ``files`` for :func:`model_sha256`, so that it need not wait: 15 GB take many seconds."""
    return [_digest_of(file) for file in files]


def _digest_of(file: Path) -> Future[str]:
    try:
        stat = file.stat()
    except OSError as error:
        failed: Future[str] = Future()
        failed.set_exception(error)
        return failed
    return _cached_digest(file.resolve(), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=64)
def _cached_digest(file: Path, size: int, mtime_ns: int) -> Future[str]:
    pool = ThreadPoolExecutor(1)
    digest = pool.submit(sha256_of, file)
    pool.shutdown(wait=False)
    return digest


def driver_of(geometry: Geometry) -> str:
    """Return this program with its version; and the user's file that a model's family is from, by digest."""
    own, file = f"apr-falsify {__version__}", file_of(geometry.family)
    return own if file is None else f"{own}, {file.where.name} {file.digest[:16]}"


def same_family_file(geometry: Geometry) -> Mapping[str, object]:
    """Return what a trace's provenance must say where the family is from a user's file, which may change."""
    return {} if file_of(geometry.family) is None else {"driver": driver_of(geometry)}


def difference(
    trace: Trace, request: Request, geometry: Geometry, wanted: Mapping[str, object]
) -> str | None:
    """Say how ``trace`` is not the capture of ``request``, ``None`` where it is.

    Args:
        trace: a capture made before.
        request: tokens, layers and stages requested now.
        geometry: the model's geometry.
        wanted: the fields of its provenance that must be equal, by name.

    """
    for name, value in wanted.items():
        found = getattr(trace.provenance, name)
        if found != value:
            return f"{name} is {found}, wanted {value}"
    for field in fields(geometry):  # weights of the same bytes may be run under another config.json
        ours, theirs = getattr(trace.geometry, field.name), getattr(geometry, field.name)
        if ours != theirs:
            return f"{field.name} is {ours}, wanted {theirs}"
    if trace.tokens != request.tokens:
        return f"tokens are {list(trace.tokens)}, wanted {list(request.tokens)}"
    if trace.passes != request.passes:
        return f"passes are {list(trace.passes.sizes)}, wanted {list(request.passes.sizes)}"
    absent = trace.provenance.absent
    missing = [key for key in request.keys(geometry) if key not in trace.stages and key.stage not in absent]
    return f"{len(missing)} of the wanted stages are not in it" if missing else None
