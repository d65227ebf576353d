"""The two sides of a comparison: from what stands on the command line to captured traces."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from apr_falsify.capture import MemorySink, Request, Sink, TraceWriter
from apr_falsify.commands.options import naming_the_option
from apr_falsify.commands.progress import counted
from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.errors import MissingDependencyError, ModelError, OutputError, TokensError, UsageError
from apr_falsify.geometry import Geometry
from apr_falsify.identity import difference, model_sha256
from apr_falsify.oracle.capture import capture as capture_oracle
from apr_falsify.oracle.hub import resolve
from apr_falsify.oracle.tokenizer import encode
from apr_falsify.stages import ATTENTION_SUBSTAGES
from apr_falsify.subjects.interface import Subject, Target
from apr_falsify.subjects.registry import RUNTIMES, open_subject
from apr_falsify.trace import TRACE_JSON, Trace, read_trace
from apr_falsify.weights import Model, open_model

DEFAULT_MODEL = Path(__file__).parent.parent / "data" / "tiny-qwen2"
"""The tiny Qwen2 checkpoint that the package carries."""

DEFAULT_PROMPT = "What is 2+2?"
DEFAULT_LAYERS = range(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleSide:
    """The oracle: a model to run, or a trace of one.

    Attributes:
        model: the model to run.
        trace: a trace that was captured before.

    """

    model: Model | None = None
    trace: Trace | None = None

    @property
    def geometry(self) -> Geometry:
        """The geometry of its model."""
        if self.model is not None:
            return self.model.geometry
        assert self.trace is not None
        return self.trace.geometry


def open_oracle(spec: str) -> OracleSide:
    """Return the oracle that ``spec`` names: a trace directory, a model on disk, or a hub id.

    Raises:
        ModelError: nothing usable there.
        TraceError: a trace that cannot be trusted.

    """
    if not spec:
        raise UsageError("an empty path", where="--oracle", expected="a model, a hub id or a trace")
    path = Path(spec)
    if (path / TRACE_JSON).exists():
        return OracleSide(trace=read_trace(path))
    return OracleSide(model=open_model(path if path.exists() else resolve(spec)))


def split_subject(spec: str) -> tuple[str, Path]:
    """Return runtime and path of ``RUNTIME:PATH``; a directory with trace.json is ``recorded``.

    Raises:
        UsageError: neither of the two.

    """
    runtime, colon, path = spec.partition(":")
    if colon and runtime in RUNTIMES and path:
        return runtime, Path(path)
    if (Path(spec) / TRACE_JSON).exists():
        return "recorded", Path(spec)
    raise UsageError(
        f"not a subject: {spec!r}",
        where="--subject",
        expected=", ".join(f"{name}:{row.path}" for name, row in RUNTIMES.items()),
        remedy=f"--subject recorded:{spec}" if spec and Path(spec).is_dir() else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What shall be run, decided before anything runs.

    Attributes:
        oracle: the oracle.
        runtime: the subject's runtime.
        subject: the subject.
        request: tokens, layers and stages for both.
        judged: the layers to judge.
        findings: what is known already.
        not_checked: what is known not to have been looked at.

    """

    oracle: OracleSide
    runtime: str
    subject: Subject
    request: Request
    judged: tuple[int, ...]
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]


def make_plan(
    oracle_spec: str | None,
    subject_spec: str | None,
    *,
    layers: range | None,
    stages: tuple[str, ...],
    substages: bool,
    prompt: str | None,
    tokens: tuple[int, ...] | None,
    arithmetic: str | None,
    options: Mapping[str, str] | None = None,
) -> Plan:
    """Open both sides and decide tokens, layers and stages.

    Raises:
        AprFalsifyError: a side that cannot be opened, or sides that do not fit the request.

    """
    if prompt is not None and tokens is not None:
        raise UsageError("--prompt and --tokens say the same thing twice", remedy="give one of them")
    runtime, path = _subject_spec(oracle_spec, subject_spec)
    oracle = open_oracle(oracle_spec or str(_model_of(runtime, path)))
    target = Target(
        path=path,
        model=oracle.model,
        reference=oracle.trace,
        tokens=tokens,
        arithmetic=arithmetic,
        options=options or {},
    )
    subject = open_subject(runtime, target)
    judged = _layers(layers, oracle, subject)
    fixed = subject.tokens or (None if oracle.trace is None else oracle.trace.tokens)
    if prompt is not None and subject.prompt not in (None, prompt):
        raise UsageError(f"the subject ran {subject.prompt!r}", where="--prompt", remedy="leave --prompt out")
    text = subject.prompt if prompt is None else prompt
    if text is None and tokens is None:
        text = DEFAULT_PROMPT
    if tokens is not None and fixed not in (None, tokens):
        raise TokensError(
            "not the tokens of the trace", where="--tokens", expected=str(fixed), remedy="leave --tokens out"
        )
    ids = fixed or tokens or _encode(oracle, text)
    findings, not_checked = _tokenizer_check(oracle, subject, text, ids)
    wanted = stages if substages else tuple(name for name in stages if name not in ATTENTION_SUBSTAGES)
    span = range(judged[0], judged[-1] + 1)
    request = Request(tokens=ids, layers=span, stages=wanted, prompt=text, feeder=True)
    with naming_the_option():
        request.check(oracle.geometry)
    return Plan(
        oracle=oracle,
        runtime=runtime,
        subject=subject,
        request=request,
        judged=judged,
        findings=findings,
        not_checked=not_checked,
    )


def _subject_spec(oracle_spec: str | None, subject_spec: str | None) -> tuple[str, Path]:
    if subject_spec is not None:
        return split_subject(subject_spec)
    if oracle_spec is None:
        return "embedded", DEFAULT_MODEL
    if (Path(oracle_spec) / TRACE_JSON).exists():
        raise UsageError("a trace as oracle needs a subject", remedy="--subject RUNTIME:PATH")
    return "embedded", Path(oracle_spec) if Path(oracle_spec).exists() else resolve(oracle_spec)


def _model_of(runtime: str, path: Path) -> Path:
    if runtime == "embedded":
        return path
    raise UsageError(
        f"nothing says what the {runtime} subject shall be compared with",
        expected="--oracle MODEL (a HuggingFace directory, a .gguf file or a hub id) or --oracle TRACE",
    )


def _layers(layers: range | None, oracle: OracleSide, subject: Subject) -> tuple[int, ...]:
    held = subject.layers
    if oracle.trace is not None:
        shared = tuple(layer for layer in oracle.trace.layers if held is None or layer in held)
        held = shared or held
    if layers is None:
        return held or tuple(DEFAULT_LAYERS)
    with naming_the_option():
        return tuple(oracle.geometry.check_layers(layers))


def _encode(oracle: OracleSide, text: str | None) -> tuple[int, ...]:
    if oracle.model is None or text is None:
        raise TokensError("nothing says which tokens to run", remedy="--tokens 1,2,3 or --prompt TEXT")
    return encode(oracle.model, text)


def _tokenizer_check(
    oracle: OracleSide, subject: Subject, text: str | None, ids: tuple[int, ...]
) -> tuple[tuple[Finding, ...], tuple[str, ...]]:
    """Compare the ids that a subject fixes with those that the oracle's tokenizer gives for its prompt."""
    if subject.tokens is None:
        return (), ()
    if oracle.model is None or text is None:
        return (), ("the tokenizer: no prompt, or no model whose tokenizer could be asked",)
    try:
        ours = encode(oracle.model, text)
    except (MissingDependencyError, ModelError) as error:
        return (), (f"the tokenizer: {error.what}",)
    if ours == ids:
        return (), ()
    finding = Finding(
        type=FindingType.TOKENIZER,
        explanation=(
            f"the oracle's tokenizer gives {list(ours)} for {text!r}, the subject ran {list(ids)}; "
            "the oracle was run on the subject's ids"
        ),
        advice="compare the subject's pre-tokenizer and merges with tokenizer.json",
        size=float(abs(len(ours) - len(ids))),
    )
    return (finding,), ()


def capture_sides(plan: Plan, *, dtype: str | None, device: str, run: Path | None) -> tuple[Trace, Trace]:
    """Capture what the plan names, under ``run`` where one is given, else in memory.

    A side that lies there already with the same identity is read, not run.

    Raises:
        OutputError: another capture lies there, or it cannot be written to.

    """
    oracle = plan.oracle.trace
    if oracle is None:  # first: it is the side that may lack a library or a device
        assert plan.oracle.model is not None
        ours = OracleRun(model=plan.oracle.model, dtype=dtype or DEFAULT_DTYPES[device], device=device)
        oracle = _captured(run, "oracle", plan.request, ours.model.geometry, ours)
    return oracle, _captured(run, "subject", plan.request, plan.subject.geometry, plan.subject)


@contextmanager
def whole_or_nothing(run: Path | None) -> Iterator[None]:
    """Remove what was captured into ``run`` where the bisection fails all the same.

    What lay there before stays.
    """
    folders = () if run is None else (run, *run.parents)
    sides = () if run is None else (run / "oracle", run / "subject")
    made = [folder for folder in folders if not folder.exists()]
    written = [side for side in sides if not side.exists()]
    try:
        yield
    except BaseException:
        for side in written:
            shutil.rmtree(side, ignore_errors=True)
        for folder in made:
            with suppress(OSError):  # not made, or others have put something there
                folder.rmdir()
        raise


def capture_one(plan: Plan, *, oracle: bool, dtype: str | None, device: str, out: Path) -> Trace:
    """Capture one side of the plan into the directory ``out``.

    Raises:
        OutputError: another capture lies there, or it cannot be written to.

    """
    if not oracle:
        return _captured(out.parent, out.name, plan.request, plan.subject.geometry, plan.subject)
    assert plan.oracle.model is not None
    run = OracleRun(model=plan.oracle.model, dtype=dtype or DEFAULT_DTYPES[device], device=device)
    return _captured(out.parent, out.name, plan.request, run.model.geometry, run)


DEFAULT_DTYPES: Mapping[str, str] = {"cpu": "f32", "cuda": "f16"}
"""Device -> the oracle's number format: half precision is slow and inexact on a CPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OracleRun:
    """The oracle as something that can be captured.

    Attributes:
        model: the model.
        dtype: the number format to run it in.
        device: where to run it.

    """

    model: Model
    dtype: str
    device: str

    def capture(self, request: Request, sink: Sink) -> Trace:
        """Run the model through transformers."""
        return capture_oracle(self.model, request, sink, dtype=self.dtype, device=self.device)

    def differs(self, trace: Trace, request: Request) -> str | None:
        """Say how ``trace`` is not what :meth:`capture` would give."""
        wanted = {
            "runtime": "hf",
            "version": importlib.metadata.version("transformers"),
            "model_sha256": model_sha256(self.model.files),
            "dtype": self.dtype,
            "device": self.device,
        }
        return difference(trace, request, self.model.geometry, wanted)


class _Capturable(Protocol):
    def capture(self, request: Request, sink: Sink) -> Trace: ...

    def differs(self, trace: Trace, request: Request) -> str | None: ...


def _captured(run: Path | None, name: str, request: Request, geometry: Geometry, side: _Capturable) -> Trace:
    count = len(request.keys(geometry))
    title = f"capturing {name}"
    if run is None:
        with counted(MemorySink(), title, count) as sink:
            return side.capture(request, sink)
    directory = run / name
    if directory.exists():
        if not (directory / TRACE_JSON).exists():
            raise OutputError(
                "exists already and is no trace", where=directory, remedy="choose another place with --out"
            )
        return _reused(directory, request, side)
    with TraceWriter(directory) as writer, counted(writer, title, count) as sink:
        return side.capture(request, sink)


def _reused(directory: Path, request: Request, side: _Capturable) -> Trace:
    trace = read_trace(directory)
    differs = side.differs(trace, request)
    if differs:
        raise OutputError(
            f"another capture lies here: {differs}",
            where=directory,
            remedy="remove it, or choose another place with --out",
        )
    return trace
