"""The two sides of a comparison: from what stands on the command line to captured traces."""

from __future__ import annotations

import importlib.metadata
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, Unpack

from apr_falsify.commands.live import started_subject
from apr_falsify.commands.live_wired import LiveWired
from apr_falsify.commands.options import Sides, naming_the_option
from apr_falsify.commands.passes import AskedPasses
from apr_falsify.commands.progress import counted
from apr_falsify.commands.runtimes import open_side
from apr_falsify.commands.specs import (
    DEFAULT_PROMPT,
    OracleSide,
    model_of,
    open_oracle,
    subject_named,
)
from apr_falsify.commands.tokenizers import tokenizer_check
from apr_falsify.commands.wired import lacks_mapping, open_wired
from apr_falsify.compare.bisection import Finding
from apr_falsify.errors import (
    OutputError,
    PassesError,
    TokensError,
    UsageError,
)
from apr_falsify.folders import partial_name
from apr_falsify.formats.weights import Model
from apr_falsify.model.passes import Passes
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import SEEN_BY_ATTENTION
from apr_falsify.oracle.capture import capture as capture_oracle
from apr_falsify.oracle.tokenizer import encode
from apr_falsify.subjects.interface import DEFAULT_SECONDS, InPasses, Noted, Subject, Target
from apr_falsify.traces.capture import MemorySink, Request, Sink, TraceWriter
from apr_falsify.traces.identity import difference, model_sha256, same_family_file
from apr_falsify.traces.trace import Trace, is_trace, read_trace

DEFAULT_LAYERS = range(0, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What shall be run, decided before the oracle runs.

    A context manager: a subject that is a program of its own runs already, and is ended with it.

    Attributes:
        oracle: the oracle.
        runtime: the subject's runtime.
        subject: the subject.
        request: tokens, layers and stages for both.
        judged: the layers to judge.
        findings: what is known already.
        not_checked: what is known not to have been looked at.
        running: what ends with the plan.

    """

    oracle: OracleSide
    runtime: str
    subject: Subject
    request: Request
    judged: tuple[int, ...]
    findings: tuple[Finding, ...]
    not_checked: tuple[str, ...]
    running: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.running.__exit__(kind, error, traceback)


def make_plan(
    oracle_spec: str | OracleSide | None,
    subject_spec: str | None,
    *,
    earlier: Path | None = None,
    logs: Path | None = None,
    **sides: Unpack[Sides],
) -> Plan:
    """Open both sides, decide tokens, layers and stages, and begin the subject where it is a program.

    Args:
        oracle_spec: what stands behind ``--oracle``, or what that would open.
        subject_spec: what stands behind ``--subject``.
        earlier: where the subject's trace lies or will lie; what lies there is not run again.
        logs: the folder that keeps what the program prints.
        sides: how they are run.

    Raises:
        AprFalsifyError: a side that cannot be opened, or sides that do not fit the request.

    """
    prompt, tokens = sides["prompt"], sides["tokens"]
    if prompt is not None and tokens is not None:
        raise UsageError("--prompt and --tokens say the same thing twice", remedy="give one of them")
    runtime, path = subject_named(subject_spec, oracle_spec)
    asked = sides.get("passes", AskedPasses())
    oracle = open_oracle(oracle_spec or str(model_of(runtime, path)), sides.get("oracle_options"))
    log = None if logs is None else logs / f"subject-{runtime}.log"
    target = _target(path, oracle, log, sides)
    subject = open_wired(target) if lacks_mapping(runtime, target) else open_side(runtime, target)
    judged = _layers(sides["layers"], oracle, subject)
    text = _text(subject, prompt, tokens)
    span = range(judged[0], judged[-1] + 1)
    request = Request(tokens=(), layers=span, stages=_stages(sides), prompt=text, feeder=True)
    notes = subject.notes if isinstance(subject, Noted) else ()
    with ExitStack() as running:
        subject = running.enter_context(
            started_subject(subject, request, earlier=earlier, oracle=oracle.model)
        )
        ids = _tokens(oracle, subject, tokens, text)
        findings, not_checked = tokenizer_check(oracle, subject, text, ids)
        request = replace(request, tokens=ids, in_passes=_passes(runtime, subject, asked, len(ids)))
        with naming_the_option():
            request.check(oracle.geometry)
        return Plan(
            oracle=oracle,
            runtime=runtime,
            subject=subject,
            request=request,
            judged=judged,
            findings=findings,
            not_checked=(*notes, *not_checked),
            running=running.pop_all(),
        )


def _target(path: Path, oracle: OracleSide, log: Path | None, sides: Sides) -> Target:
    return Target(
        path=path,
        model=oracle.model,
        reference=oracle.trace,
        tokens=sides["tokens"],
        passes=asked.sizes if (asked := sides.get("passes")) is not None else (),
        arithmetic=sides["arithmetic"],
        options=sides.get("options", {}),
        program=sides.get("program"),
        seconds=sides.get("seconds", DEFAULT_SECONDS),
        log=log,
    )


def _text(subject: Subject, prompt: str | None, tokens: tuple[int, ...] | None) -> str | None:
    """Return the text to run: the subject's own or the user's; where nothing fixes the ids the default."""
    if prompt is not None and subject.prompt not in (None, prompt):
        raise UsageError(f"the subject ran {subject.prompt!r}", where="--prompt", remedy="leave --prompt out")
    text = subject.prompt if prompt is None else prompt
    fixed = tokens is not None or subject.tokens is not None
    return DEFAULT_PROMPT if text is None and not fixed else text


def _passes(runtime: str, subject: Subject, asked: AskedPasses, tokens: int) -> Passes | None:
    """Return the passes to run: those of a recording, else those that the user asked for.

    Raises:
        UsageError: the subject's runtime computes its tokens at once.
        PassesError: they do not fit the tokens, or the recording.

    """
    wanted = asked.of(tokens)
    if not isinstance(subject, InPasses):
        if wanted is not None:
            raise UsageError(
                f"the runtime {runtime} computes its tokens at once here",
                where="--passes, --decode, --chunks, --positions",
                expected="an embedded, a llama-cpp or a recorded subject",
            )
        return None
    if subject.passes is None:
        return wanted
    own = subject.passes
    if wanted is not None and (wanted.sizes, wanted.positions) != (own.sizes, own.positions):
        raise PassesError(
            f"the recording ran in passes of {list(own.sizes)} tokens",
            where="--passes",
            expected="its own passes and positions",
            remedy="leave it out, or let the recording's mapping say otherwise",
        )
    own = replace(own, unseen=0)  # what a recording leaves out the oracle computes
    return None if own.plain else own


def _stages(sides: Sides) -> tuple[str, ...]:
    left_out = () if sides["substages"] else SEEN_BY_ATTENTION
    return tuple(name for name in sides["stages"] if name not in left_out)


def _tokens(
    oracle: OracleSide, subject: Subject, tokens: tuple[int, ...] | None, text: str | None
) -> tuple[int, ...]:
    """Return the ids to run: those that the subject or the trace fixes, else the user's or the text's."""
    fixed = subject.tokens or (None if oracle.trace is None else oracle.trace.tokens)
    if tokens is not None and fixed not in (None, tokens):
        raise TokensError(
            "not the tokens of the trace", where="--tokens", expected=str(fixed), remedy="leave --tokens out"
        )
    return fixed or tokens or _encode(oracle, text)


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


def capture_sides(plan: Plan, *, dtype: str | None, device: str, run: Path | None) -> tuple[Trace, Trace]:
    """Capture what the plan names, under ``run`` where one is given, else in memory.

    A side that lies there already with the same identity is read, not run.

    Raises:
        OutputError: another capture lies there, or it cannot be written to.

    """
    oracle = plan.oracle.trace
    if oracle is None:  # first: it is the side that may lack a library or a device
        ours = _reference(plan.oracle, dtype, device)
        oracle = _captured(run, "oracle", _of_reference(plan), plan.oracle.geometry, ours)
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


def capture_one(plan: Plan, *, oracle: bool, dtype: str | None, device: str, out: Path | None) -> Trace:
    """Capture one side of the plan into the directory ``out``, in memory where there is none.

    Raises:
        OutputError: another capture lies there, or it cannot be written to.

    """
    run, name = (None, "subject") if out is None else (out.parent, out.name)
    if not oracle:
        return _captured(run, name, plan.request, plan.subject.geometry, plan.subject)
    ours = _reference(plan.oracle, dtype, device)
    return _captured(run, name, plan.request, plan.oracle.geometry, ours)


def _reference(oracle: OracleSide, dtype: str | None, device: str) -> _Capturable:
    return oracle_run(oracle, dtype, device) if oracle.runtime is None else oracle.runtime


def _of_reference(plan: Plan) -> Request:
    """Return what the oracle shall do: what the subject does, but a runtime in its place does so at once.

    So a runtime's cache is compared with the same runtime without it.
    """
    passes = plan.request.passes
    if plan.oracle.runtime is None or plan.request.in_passes is None:
        return plan.request
    whole = replace(passes, sizes=(passes.tokens,))
    return replace(plan.request, in_passes=None if whole.plain else whole)


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
            **same_family_file(self.model.geometry),
        }
        return difference(trace, request, self.model.geometry, wanted)


def oracle_run(oracle: OracleSide, dtype: str | None, device: str) -> OracleRun:
    """Return the run of an oracle that is a model; ``dtype`` ``None`` is the device's default."""
    assert oracle.model is not None
    if device not in DEFAULT_DTYPES:
        raise UsageError(f"no device {device!r}", where="--device", expected=" or ".join(DEFAULT_DTYPES))
    return OracleRun(model=oracle.model, dtype=dtype or DEFAULT_DTYPES[device], device=device)


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
        if not is_trace(directory):
            raise OutputError(
                "exists already and is no trace", where=directory, remedy="choose another place with --out"
            )
        reused = _reused(directory, request, side)
        anew = isinstance(side, LiveWired) and side.files is None
        return _renewed(directory, count, request, side) if anew else reused
    with TraceWriter(directory) as writer, counted(writer, title, count) as sink:
        return side.capture(request, sink)


def _renewed(directory: Path, count: int, request: Request, side: _Capturable) -> Trace:
    """Capture a side again whose earlier trace stays until the new one is whole."""
    new, old = (directory.with_name(partial_name(directory) + word) for word in ("new", "old"))
    with TraceWriter(new) as writer, counted(writer, f"capturing {directory.name}", count) as sink:
        side.capture(request, sink)
    try:
        directory.rename(old)
        new.rename(directory)
    except OSError as error:
        with suppress(OSError):
            old.rename(directory)
        raise OutputError(f"cannot be replaced: {error.strerror}", where=directory) from error
    finally:
        for left in (new, old):
            shutil.rmtree(left, ignore_errors=True)
    return read_trace(directory)


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
