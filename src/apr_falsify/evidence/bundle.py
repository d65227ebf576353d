"""A bundle: what a falsifier's run leaves for a reviewer; written whole or not at all, read strictly.

The directory (design section 9): ``bundle.json``, ``claim.json``, ``bisection.json``, ``oracle`` and
``subject`` with ``trace.json`` and stage files, ``controls/NAME/bisection.json``, ``junit.xml``,
``report.html``, ``statement.json`` and, where it is signed, ``statement.dsse.json``.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_falsify.compare.attempts import Attempts
from apr_falsify.contracts.claim import canonical_json
from apr_falsify.errors import AprFalsifyError, EvidenceError, MissingDependencyError, OutputError
from apr_falsify.evidence.facts import Facts
from apr_falsify.evidence.facts_reader import read_facts
from apr_falsify.evidence.files import (
    BISECTION,
    BUNDLE,
    CLAIM,
    ENVELOPE,
    JUNIT,
    MOST_BYTES,
    REPORT,
    SIDES,
    STATEMENT,
    BundleProblem,
    Contents,
    is_name,
    json_bytes,
    load_json,
    read_contents,
    sha256,
)
from apr_falsify.evidence.junit import junit_xml
from apr_falsify.evidence.statement import statement_bytes
from apr_falsify.evidence.traces import files_of, read_side
from apr_falsify.evidence.verify import verify_contents
from apr_falsify.folders import partial_name, partial_prefix, sweep
from apr_falsify.reading import mapping
from apr_falsify.traces.trace import TRACE_JSON, Trace

if TYPE_CHECKING:
    from apr_falsify.evidence.sign import SigningKey

LIMIT = 3_000_000
"""The size in bytes up to which a bundle holds the stage files themselves."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What a bundle is made of.

    Attributes:
        facts: what it says of itself; its digests are computed by nobody else.
        bisection: the object of schema ``apr-falsify/bisection/v1``; ``None`` where none was made.
        oracle: the oracle's trace, where a bisection was made.
        subject: the subject's trace.
        controls: name -> bisection of a control, where a test handed one over.
        junit: the JUnit XML of the falsifier's tests; empty to have it made from the facts.

    """

    facts: Facts
    bisection: Mapping[str, Any] | None = None
    oracle: Trace | None = None
    subject: Trace | None = None
    controls: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    junit: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was read; :func:`apr_falsify.evidence.verify.verify` says whether it holds.

    Attributes:
        path: where it lies.
        facts: what it says of itself.
        bisection: the bisection, as JSON.
        oracle: the oracle's trace; without stages where the bundle holds only their digests.
        subject: the subject's.
        controls: name -> bisection of a control.
        files: name -> bytes of every file.

    """

    path: Path
    facts: Facts
    bisection: Mapping[str, Any] | None
    oracle: Trace | None
    subject: Trace | None
    controls: Mapping[str, Mapping[str, Any]]
    files: Mapping[str, bytes]

    @property
    def statement_sha256(self) -> str:
        """Digest of its statement: what pins it."""
        return sha256(self.files[STATEMENT])

    @property
    def traces(self) -> tuple[Trace, Trace] | None:
        """Both traces, where their values are in the bundle."""
        if self.oracle is None or self.subject is None or not (self.oracle.stages and self.subject.stages):
            return None
        return self.oracle, self.subject


def read_bundle(path: Path) -> Bundle:
    """Read the bundle at ``path``, a directory or a zip of one.

    Raises:
        EvidenceError: it is none, or a file of it cannot be read or does not belong there.

    """
    contents = read_contents(path)
    if contents.problems:
        raise _refused(path, contents.problems)
    files = contents.files
    try:
        if missing := [name for name in (BUNDLE, STATEMENT) if name not in files]:
            raise ValueError(f"{missing[0]} is missing")
        return Bundle(
            path=path,
            facts=read_facts(load_json(files, BUNDLE)),
            bisection=_object(files, BISECTION) if BISECTION in files else None,
            oracle=_trace(files, "oracle"),
            subject=_trace(files, "subject"),
            controls={name: _object(files, f"controls/{name}/{BISECTION}") for name in _controls(files)},
            files=files,
        )
    except (ValueError, KeyError) as error:
        raise EvidenceError(f"is no usable bundle: {error}", where=path) from error
    except AprFalsifyError as error:
        raise EvidenceError(f"is no usable bundle: {error.where}: {error.what}", where=path) from error


def _refused(path: Path, problems: tuple[BundleProblem, ...]) -> EvidenceError:
    first = problems[0]
    more = f", and {len(problems) - 1} more problems" if len(problems) > 1 else ""
    return EvidenceError(
        f"{first.file} {first.message}{more}",
        where=path,
        expected="the files of a bundle, and no other",
        remedy=f"apr-falsify evidence verify {path}",
    )


def _object(files: Mapping[str, bytes], name: str) -> Mapping[str, Any]:
    return mapping(load_json(files, name), name)


def _trace(files: Mapping[str, bytes], side: str) -> Trace | None:
    return read_side(files, side).trace if f"{side}/{TRACE_JSON}" in files else None


def _controls(files: Mapping[str, bytes]) -> list[str]:
    return sorted(name.split("/")[1] for name in files if name.startswith("controls/"))


def write_bundle(
    draft: Draft,
    directory: Path,
    *,
    limit: int = LIMIT,
    key: SigningKey | None = None,
    report: bool = True,
) -> str:
    """Write a bundle to ``directory``, in place of the one that may be there; return its statement's sha256.

    It appears under its name whole or not at all. The same draft gives the same bytes.

    Args:
        draft: what it is made of.
        directory: where it shall be.
        limit: its size in bytes; where the stage files would exceed it, only their digests are stored.
        key: what to sign it with.
        report: whether to make ``report.html`` too, where jinja2 is installed.

    Raises:
        EvidenceError: the draft contradicts itself, so that the bundle would not verify; or it is larger
            than ``limit`` even without stage files.
        OutputError: it cannot be written, or something else than a bundle is there.

    """
    files = bundle_files(draft, limit=limit, key=key, report=report)
    _place(files, directory)
    return sha256(files[STATEMENT])


def bundle_files(
    draft: Draft, *, limit: int = LIMIT, key: SigningKey | None = None, report: bool = True
) -> dict[str, bytes]:
    """Return name -> bytes of a bundle's files, as :func:`write_bundle` writes them."""
    for values in (True, False):
        files = _files(draft, values=values, key=key, report=report)
        size = sum(map(len, files.values()))
        if size <= min(limit, MOST_BYTES):
            break
    else:
        largest = max(files, key=lambda name: len(files[name]))
        raise EvidenceError(
            f"the bundle has {size} bytes without any stage file, {largest} alone {len(files[largest])}",
            where=draft.facts.falsifier,
            expected=f"at most {limit} bytes",
            remedy="compare fewer layers or stages",
        )
    found = verify_contents(Contents(path=Path(draft.facts.falsifier), files=files))
    problems = [one for one in found.problems if one.code not in ("no-tests", "bad-statement")]
    if problems or (found.problems and draft.facts.tests):
        raise _refused(Path(draft.facts.falsifier), tuple(problems or found.problems))
    return files


def _files(draft: Draft, *, values: bool, key: SigningKey | None, report: bool) -> dict[str, bytes]:
    facts = draft.facts
    junit = draft.junit or junit_xml(facts.tests, suite=facts.falsifier, created=facts.created)
    try:
        files = {
            BUNDLE: json_bytes(facts.to_json()),
            CLAIM: canonical_json(facts.claim),
            JUNIT: junit.encode(),
        }
        if draft.bisection is not None:
            files[BISECTION] = json_bytes(draft.bisection)
        for name, bisection in draft.controls.items():
            files[f"controls/{name}/{BISECTION}"] = json_bytes(bisection)
    except (ValueError, TypeError) as error:
        raise EvidenceError(f"cannot be written as JSON: {error}", where=facts.falsifier) from error
    if foreign := [name for name in files if not is_name(name)]:
        raise EvidenceError(
            f"{foreign[0]!r} is no name for a file of a bundle",
            where=facts.falsifier,
            expected="letters, digits, dots and dashes; no blank, no slash",
        )
    for side in SIDES:
        trace: Trace | None = getattr(draft, side)
        files |= {} if trace is None else files_of(trace, side, values=values)
    html = _report(draft, read_facts(load_json(files, BUNDLE)), values=values) if report else None
    files |= {} if html is None else {REPORT: html.encode()}
    files[STATEMENT] = statement_bytes(facts, {name: sha256(data) for name, data in files.items()})
    if key is not None:
        from apr_falsify.evidence.sign import envelope_bytes

        files[ENVELOPE] = envelope_bytes(files[STATEMENT], key)
    return files


def _report(draft: Draft, facts: Facts, *, values: bool) -> str | None:
    """Return ``report.html`` of the facts as they are read back, ``None`` where jinja2 is not installed."""
    from apr_falsify.evidence.report import bundle_html

    traces = (draft.oracle, draft.subject) if draft.oracle and draft.subject and values else None
    try:
        return bundle_html(facts, draft.bisection, traces, draft.controls, attempts=Attempts())
    except MissingDependencyError:
        return None


def _place(files: Mapping[str, bytes], directory: Path) -> None:
    """Write beside, flush, rename; what is there already is replaced by the finished bundle alone."""
    with _writing(directory):
        directory.parent.mkdir(parents=True, exist_ok=True)
        sweep(directory.parent, partial_prefix(directory))
        _check_place(directory)
        partial = Path(tempfile.mkdtemp(prefix=partial_name(directory), dir=directory.parent))
    try:
        with _writing(directory):
            _fill(partial, files)
            _swap(partial, directory)
            _flush(directory.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def sign_bundle(directory: Path, key: SigningKey) -> None:
    """Add a signature to the bundle at ``directory``; its other files stay as they are.

    Raises:
        EvidenceError: it is no bundle, or does not verify.
        OutputError: it cannot be written.

    """
    from apr_falsify.evidence.sign import envelope_bytes

    contents = read_contents(directory)
    found = verify_contents(contents)
    if found.problems:
        raise _refused(directory, found.problems)
    envelope = envelope_bytes(contents.files[STATEMENT], key, contents.files.get(ENVELOPE))
    with _writing(directory):
        sweep(directory.parent, partial_prefix(directory))
        # beside the bundle: what a killed run leaves within it would be an extra file
        partial = Path(tempfile.mkdtemp(prefix=partial_name(directory), dir=directory.parent))
    try:
        with _writing(directory):
            _fill(partial, {ENVELOPE: envelope})
            os.replace(partial / ENVELOPE, directory / ENVELOPE)
            _flush(directory)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_place(directory: Path) -> None:
    """Refuse to replace what is no bundle."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise OutputError(
            "is there already, and no directory", where=directory, expected="a bundle, or nothing"
        )
    # Another process may be swapping it: look ten times, and refuse only if it never is a bundle.
    if all(_is_taken(directory) for _ in range(10)):
        raise OutputError(
            "is there already, and no bundle", where=directory, remedy="choose another --evidence-dir"
        )


def _is_taken(directory: Path) -> bool:
    try:
        names = os.listdir(directory)
    except FileNotFoundError:
        return False
    return bool(names) and STATEMENT not in names


def _fill(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files, the statement last: without it nothing is a bundle."""
    folder.chmod(0o755)
    for name in sorted(files, key=lambda name: (name in (STATEMENT, ENVELOPE), name)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(files[name])
            file.flush()
            os.fsync(file.fileno())
    for inner in sorted({(folder / name).parent for name in files}):
        _flush(inner)


def _swap(partial: Path, directory: Path) -> None:
    """Rename the finished bundle to its name; a directory is never renamed over a filled one."""
    for _ in range(20):  # another writer of the same bundle may come between the two renames
        try:
            partial.rename(directory)
            return
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
        old = Path(tempfile.mkdtemp(prefix=partial_name(directory), dir=directory.parent))
        with suppress(FileNotFoundError):
            directory.rename(old / directory.name)
        shutil.rmtree(old, ignore_errors=True)
    raise OutputError("others write the same bundle all the time", where=directory)


def _flush(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"the bundle cannot be written: {error.strerror}",
            where=directory,
            remedy="free space or choose another place with --evidence-dir; nothing was left behind",
        ) from error
