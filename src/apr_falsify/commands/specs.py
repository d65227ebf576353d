"""What stands on the command line for the two sides: models, traces, hub ids, ``RUNTIME:PATH``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.commands.runtimes import OURS, open_side
from apr_falsify.errors import UsageError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.shape import Geometry
from apr_falsify.oracle.hub import resolve
from apr_falsify.subjects.interface import Startable, Subject, Target
from apr_falsify.subjects.registry import RUNTIMES as REGISTERED
from apr_falsify.subjects.registry import RuntimeEntry
from apr_falsify.traces.trace import Trace, is_trace, read_trace

RUNTIMES: Mapping[str, RuntimeEntry] = {**REGISTERED, **OURS}
"""Name -> runtime, for ``RUNTIME:PATH``."""

DEFAULT_MODEL = Path(__file__).parent.parent / "data" / "tiny-qwen2"
"""The tiny Qwen2 checkpoint that the package carries."""

DEFAULT_PROMPT = "What is 2+2?"


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleSide:
    """The oracle: a model to run, or a trace of one.

    Attributes:
        model: the model to run.
        trace: a trace that was captured before.
        runtime: what runs it, where that is not transformers.

    """

    model: Model | None = None
    trace: Trace | None = None
    runtime: Subject | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        if self.runtime is not None:
            return self.runtime.geometry
        if self.model is not None:
            return self.model.geometry
        assert self.trace is not None
        return self.trace.geometry


def open_oracle(spec: str | OracleSide, options: Mapping[str, str] | None = None) -> OracleSide:
    """Return the oracle that ``spec`` names: a trace directory, a model on disk, or a hub id.

    ``RUNTIME:PATH`` is a runtime that takes transformers' place; ``options`` are settings for it.

    Raises:
        ModelError: nothing usable there.
        TraceError: a trace that cannot be trusted.

    """
    if isinstance(spec, OracleSide):
        return spec
    if not spec:
        raise UsageError("an empty path", where="--oracle", expected="a model, a hub id or a trace")
    runtime, colon, place = spec.partition(":")
    if colon and place and runtime in RUNTIMES:
        return _run_by(runtime, Path(place), options or {})
    path = Path(spec)
    if is_trace(path):
        return OracleSide(trace=read_trace(path))
    return OracleSide(model=open_model(path if path.exists() else resolve(spec)))


def _run_by(runtime: str, path: Path, options: Mapping[str, str]) -> OracleSide:
    """Return a runtime as the oracle, of whatever model it runs.

    Raises:
        UsageError: it runs no tokens that it is given.

    """
    found = None
    if not is_recording(runtime, path):
        try:
            found = open_side(runtime, Target(path=path, options=options))
        except UsageError as error:
            if error.where != "--subject-option":
                raise
            raise UsageError(
                error.what, where="--oracle-option", expected=error.expected, remedy=error.remedy
            ) from None
    if found is None or isinstance(found, Startable) or found.tokens is not None:
        raise UsageError(
            f"{runtime} does not run the tokens that it is given, so it cannot stand for transformers",
            where="--oracle",
            expected="MODEL, TRACE, embedded:PATH or llama-cpp:MODEL.gguf",
            remedy=f"apr-falsify capture {runtime}:{path} --out TRACE, then --oracle TRACE",
        )
    return OracleSide(model=found.model, runtime=found)


def split_subject(spec: str) -> tuple[str, Path]:
    """Return runtime and path of ``RUNTIME:PATH``; a directory with trace.json is ``recorded``.

    Raises:
        UsageError: neither of the two.

    """
    runtime, colon, path = spec.partition(":")
    if colon and runtime in RUNTIMES and path:
        return runtime, Path(path)
    if is_trace(Path(spec)):
        return "recorded", Path(spec)
    raise UsageError(
        f"not a subject: {spec!r}",
        where="--subject",
        expected=", ".join(f"{name}:{row.path}" for name, row in RUNTIMES.items()),
        remedy=f"--subject recorded:{spec}" if spec and Path(spec).is_dir() else "",
    )


def subject_named(subject_spec: str | None, oracle_spec: str | OracleSide | None) -> tuple[str, Path]:
    """Return runtime and path of the subject: what the user named, else the embedded runtime on the oracle.

    Raises:
        UsageError: nothing says what the subject is.

    """
    if subject_spec is not None:
        return split_subject(subject_spec)
    if isinstance(oracle_spec, str) and oracle_spec.partition(":")[0] in RUNTIMES and ":" in oracle_spec:
        return split_subject(oracle_spec)
    if oracle_spec is None:
        return "embedded", DEFAULT_MODEL
    model = oracle_spec.model if isinstance(oracle_spec, OracleSide) else None
    if model is not None:
        return "embedded", model.path
    if isinstance(oracle_spec, OracleSide) or is_trace(Path(oracle_spec)):
        raise UsageError("a trace as oracle needs a subject", remedy="--subject RUNTIME:PATH")
    return "embedded", Path(oracle_spec) if Path(oracle_spec).exists() else resolve(oracle_spec)


def is_recording(runtime: str, path: Path) -> bool:
    """Whether the subject was run elsewhere."""
    return runtime == "recorded" or path.suffix == RUNTIMES[runtime].recording


def model_of(runtime: str, path: Path) -> Path:
    """Return the model that the oracle runs where only the subject is named.

    Raises:
        UsageError: the oracle cannot run what lies there.

    """
    if RUNTIMES[runtime].holds_model and not is_recording(runtime, path):
        return path
    raise UsageError(
        f"nothing says what the {runtime} subject shall be compared with",
        expected="--oracle MODEL (a HuggingFace directory, a .gguf file or a hub id) or --oracle TRACE",
    )
