"""What ``import apr_falsify`` offers; every other module is private, and may change without notice.

A *side* is a model, a subject or a trace. Paths and specs are those of the command line: a model is a
HuggingFace directory, a ``.gguf`` or ``.apr`` file, or as an oracle a hub id; a subject is ``RUNTIME:PATH``,
as in ``recorded:port.npz`` or ``llama-cpp:model.gguf``; a trace is a directory that a capture left.

Errors are :class:`AprFalsifyError`: ``what`` is wrong, ``where``, what was ``expected``, and the ``remedy``.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from apr_falsify.commands.options import Sides
from apr_falsify.commands.passes import AskedPasses
from apr_falsify.commands.sides import capture_one, capture_sides, make_plan, oracle_run, whole_or_nothing
from apr_falsify.commands.specs import RUNTIMES, OracleSide, open_oracle
from apr_falsify.compare import localise
from apr_falsify.compare.bisection import Bisection, Finding, FindingType, Kind, Row, Status, Verdict
from apr_falsify.errors import (
    AprFalsifyError,
    LayerRangeError,
    PassesError,
    StageError,
    TokensError,
    UsageError,
)
from apr_falsify.formats import weights as model_files
from apr_falsify.formats.weights import Model
from apr_falsify.model.stages import STAGES, Key, Layout, in_forward_order, stage
from apr_falsify.operators.family_file import load_families
from apr_falsify.pytest_plugin.verdict import Falsified, assert_one_source
from apr_falsify.recording.recorder import Recorder, record
from apr_falsify.subjects.interface import DEFAULT_SECONDS
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from apr_falsify.traces.trace import read_trace as trace_of

__all__ = [
    "AprFalsifyError",
    "Bisection",
    "Falsified",
    "Finding",
    "FindingType",
    "Key",
    "Kind",
    "Layout",
    "Model",
    "Recorder",
    "Row",
    "StageArray",
    "Status",
    "Trace",
    "Verdict",
    "assert_one_source",
    "bisect",
    "capture",
    "open_model",
    "read_trace",
    "record",
]

AnyPath = str | os.PathLike[str]


def open_model(path: AnyPath, *, family: AnyPath | None = None) -> Model:
    """Open a model on disk; nothing is loaded yet.

    Args:
        path: a HuggingFace directory, a ``.gguf`` or an ``.apr`` file.
        family: a Python file with a model family of your own. It is run, once in this process, and its
            families are known from then on.

    Raises:
        AprFalsifyError: nothing usable there, a family that is not known, or contradictory sizes.

    """
    _known(family)
    return model_files.open_model(Path(path))


def read_trace(directory: AnyPath) -> Trace:
    """Open a trace; every file of it is checked, and its stages are memory maps.

    Raises:
        AprFalsifyError: it is no trace, or not as it was written.

    """
    return trace_of(Path(directory))


def capture(
    side: Model | AnyPath,
    *,
    tokens: Sequence[int] | None = None,
    passes: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    prompt: str | None = None,
    layers: range | None = None,
    stages: Iterable[str] | None = None,
    oracle: Model | AnyPath | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    arithmetic: str | None = None,
    options: Mapping[str, str] | None = None,
    program: AnyPath | None = None,
    seconds: float = DEFAULT_SECONDS,
    family: AnyPath | None = None,
    out: AnyPath | None = None,
) -> Trace:
    """Run one side and return what it computed at every stage.

    Args:
        side: a model, which HuggingFace's transformers runs, or a subject ``RUNTIME:PATH``.
        tokens: the token ids to run.
        passes: how many of them are computed together, pass by pass; at once by default.
        positions: the position of each; 0, 1, 2 ... by default.
        prompt: the text to run instead; a tokenizer makes ids of it.
        layers: the layers to keep; the first by default.
        stages: the stages to keep; all by default.
        oracle: the model that a subject stands for, where the subject's own file does not say it.
        dtype: what transformers computes in: ``f32`` (on a CPU), ``f16`` (on CUDA) or ``bf16``.
        device: where transformers runs: ``cpu`` or ``cuda``.
        arithmetic: what the subject computes in.
        options: settings for the subject's runtime.
        program: the runtime's program, where it is not the one on PATH.
        seconds: how long one run of it may take.
        family: a Python file with a model family of your own, see :func:`open_model`.
        out: a directory to write the trace to; without one it stays in memory.

    Raises:
        AprFalsifyError: the side cannot be run, or not so.

    """
    _known(family)
    sides = _sides(
        tokens, _asked(passes, positions), prompt, layers, stages, arithmetic, options, program, seconds
    )
    place = None if out is None else Path(out)
    subject = str(side) if _is_subject(side) else None
    if subject is None and oracle is not None:
        raise UsageError("the model is named twice", where="oracle", remedy="leave it out")
    model = oracle if subject is not None else side
    plan = make_plan(None if model is None else _spec(model), subject, earlier=place, **sides)
    with plan:
        return capture_one(plan, oracle=subject is None, dtype=dtype, device=device, out=place)


def bisect(
    oracle: Model | Trace | AnyPath,
    subject: Trace | AnyPath | None = None,
    *,
    tokens: Sequence[int] | None = None,
    passes: Sequence[int] | None = None,
    positions: Sequence[int] | None = None,
    prompt: str | None = None,
    layers: range | None = None,
    stages: Iterable[str] | None = None,
    dtype: str | None = None,
    device: str = "cpu",
    weights: Model | AnyPath | None = None,
    arithmetic: str | None = None,
    options: Mapping[str, str] | None = None,
    program: AnyPath | None = None,
    seconds: float = DEFAULT_SECONDS,
    family: AnyPath | None = None,
    out: AnyPath | None = None,
) -> Bisection:
    """Run both sides, compare them stage by stage, and name the stages that introduced the error.

    What was captured already, in memory or on disk, is taken as it is: of two traces nothing is run, and
    torch is not needed. A subject that is run or read here is replayed with its own weights where its
    runtime's file holds them, else with the oracle's. A trace in memory is compared on its own tokens and
    layers, replayed with the oracle's weights, and its tokenizer is not checked.

    Args:
        oracle: the reference: a model, which transformers runs, or a trace.
        subject: the run in question; by default this package's NumPy runtime on the oracle.
        tokens: the token ids to run; a trace has its own.
        passes: how many of them are computed together, pass by pass; at once by default.
        positions: the position of each; 0, 1, 2 ... by default.
        prompt: the text to run instead.
        layers: the layers to judge; those that a trace holds, else the first.
        stages: the stages to judge; all by default.
        dtype: what transformers computes in.
        device: where transformers runs.
        weights: the oracle's model, where the oracle is a trace: without it what multiplies with weights is
            compared and not replayed.
        arithmetic: what the subject computes in.
        options: settings for the subject's runtime.
        program: the runtime's program, where it is not the one on PATH.
        seconds: how long one run of it may take.
        family: a Python file with a model family of your own, see :func:`open_model`.
        out: a directory that keeps both traces; a side that lies there is used again.

    Raises:
        AprFalsifyError: a side cannot be run, the sides do not belong together, or there is nothing to judge.

    """
    _known(family)
    sides = _sides(
        tokens, _asked(passes, positions), prompt, layers, stages, arithmetic, options, program, seconds
    )
    run, model = None if out is None else Path(out), None if weights is None else _model(weights)
    if isinstance(subject, Trace):
        if run is not None:
            raise UsageError("a subject in memory is not saved", where="out", remedy="capture(..., out=...)")
        return _of_trace(_side(oracle), subject, model, sides, dtype=dtype, device=device)
    earlier = None if run is None else run / "subject"
    spec = None if subject is None else str(subject)
    with whole_or_nothing(run), make_plan(_spec(oracle), spec, earlier=earlier, logs=run, **sides) as plan:
        traces = capture_sides(plan, dtype=dtype, device=device, run=run)
        own, reference = plan.subject.model, plan.oracle.model or model
        return localise.bisect(
            *traces,
            weights=None if reference is None else reference.weights,
            subject_weights=None if own is None else own.weights,
            layers=plan.judged,
            stages=plan.request.stages,
            arithmetic=arithmetic,
            findings=plan.findings,
            not_checked=plan.not_checked,
        )


def _known(family: AnyPath | None) -> None:
    if family is not None:
        load_families(Path(family))


def _asked(passes: Sequence[int] | None, positions: Sequence[int] | None) -> AskedPasses:
    return AskedPasses(sizes=_numbers(passes, "passes"), positions=_numbers(positions, "positions"))


def _numbers(given: Sequence[int] | None, name: str) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, given or ()))
    except TypeError as error:
        raise PassesError(f"not whole numbers: {given!r:.80}", where=name) from error


def _sides(
    tokens: Sequence[int] | None,
    passes: AskedPasses,
    prompt: str | None,
    layers: range | None,
    stages: Iterable[str] | None,
    arithmetic: str | None,
    options: Mapping[str, str] | None,
    program: AnyPath | None,
    seconds: float,
) -> Sides:
    if layers is not None and (not isinstance(layers, range) or layers.step != 1 or not layers):
        raise LayerRangeError(f"not layers: {layers!r}", where="layers", expected="a range, e.g. range(0, 2)")
    if isinstance(stages, str):
        raise StageError(f"not a list of stages: {stages!r}", where="stages", expected=f"e.g. [{stages!r}]")
    return Sides(
        layers=layers,
        stages=tuple(STAGES) if stages is None else in_forward_order({stage(name).name for name in stages}),
        substages=True,
        prompt=prompt,
        tokens=None if tokens is None else _ids(tokens),
        passes=passes,
        arithmetic=arithmetic,
        options={} if options is None else options,
        program=None if program is None else Path(program),
        seconds=seconds,
    )


def _ids(tokens: Sequence[int]) -> tuple[int, ...]:
    try:
        return tuple(map(operator.index, tokens))
    except TypeError as error:
        raise TokensError(
            f"not token ids: {tokens!r:.80}", where="tokens", expected="whole numbers"
        ) from error


def _is_subject(side: Model | AnyPath) -> bool:
    runtime, colon, _ = str(side).partition(":")
    return isinstance(side, str) and bool(colon) and runtime in RUNTIMES


def _side(side: Model | Trace | AnyPath) -> OracleSide:
    if isinstance(side, Model):
        return OracleSide(model=side)
    return OracleSide(trace=side) if isinstance(side, Trace) else open_oracle(str(side))


def _spec(side: Model | Trace | AnyPath) -> str | OracleSide:
    return _side(side) if isinstance(side, Model | Trace) else str(side)


def _model(model: Model | AnyPath) -> Model:
    return model if isinstance(model, Model) else open_model(model)


def _of_trace(
    oracle: OracleSide, subject: Trace, model: Model | None, sides: Sides, *, dtype: str | None, device: str
) -> Bisection:
    """Compare a trace in memory with an oracle, which is run on its tokens and layers where it must be."""
    if sides["tokens"] not in (None, subject.tokens) or sides["prompt"] is not None:
        raise UsageError("the subject was run already, on tokens of its own", where="tokens")
    if sides.get("options") or sides.get("program") is not None:
        raise UsageError("the subject was run already: it takes no options", where="options, program")
    if sides.get("passes", AskedPasses()).asked:
        raise UsageError("the subject was run already, in passes of its own", where="passes, positions")
    trace, layers = oracle.trace, sides["layers"]
    if trace is None:
        assert oracle.model is not None
        held = subject.layers or (0,)
        own = replace(subject.passes, unseen=0)
        request = Request(
            tokens=subject.tokens,
            layers=range(held[0], held[-1] + 1) if layers is None else layers,
            stages=sides["stages"],
            feeder=True,
            in_passes=None if own.plain else own,
        )
        trace = oracle_run(oracle, dtype, device).capture(request, MemorySink())
    reference = oracle.model or model
    return localise.bisect(
        trace,
        subject,
        weights=None if reference is None else reference.weights,
        layers=layers,
        stages=sides["stages"],
        arithmetic=sides["arithmetic"],
        not_checked=("the tokenizer: the subject is a trace in memory",),
    )
