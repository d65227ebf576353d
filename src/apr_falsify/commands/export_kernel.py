"""``apr-falsify capture ... --export-replay STAGE@LAYER``: run what one kernel needs, and write it down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apr_falsify.capture import MemorySink
from apr_falsify.commands.kernel_files import write_kernel
from apr_falsify.commands.options import naming_the_option
from apr_falsify.commands.sides import DEFAULT_DTYPES, OracleRun, Plan, make_plan
from apr_falsify.commands.specs import model_of, open_oracle, subject_named
from apr_falsify.compare.kernel_case import KernelCase, kernel_case, parse_place, sources_of
from apr_falsify.errors import AprFalsifyError, OutputError
from apr_falsify.geometry import Geometry
from apr_falsify.stages import STAGES
from apr_falsify.trace import Key, Trace
from apr_falsify.weights import Weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How the side is run, as the command line says.

    Attributes:
        subject: ``RUNTIME:PATH``, ``None`` for the oracle.
        oracle: the model, or a trace of it.
        prompt: the text to run.
        tokens: the token ids to run.
        arithmetic: what the subject computes in.
        options: settings for the subject's runtime.
        program: the runtime's program, where it is not the one on PATH.
        seconds: how long one run of it may take.
        dtype: the oracle's number format.
        device: where the oracle runs.

    """

    subject: str | None
    oracle: str | None
    prompt: str | None
    tokens: tuple[int, ...] | None
    arithmetic: str | None
    options: Mapping[str, str]
    program: Path | None
    seconds: float
    dtype: str | None
    device: str


def export_kernel(place: str, run: Run, out: Path) -> str:
    """Write the stage ``place`` (``STAGE@LAYER``) of the run to ``out`` and return a line about it.

    Raises:
        StageError: no such stage, or an input of it was not captured.
        LayerRangeError: no such layer.
        OutputError: ``out`` exists, or cannot be written.

    """
    if out.exists():  # before a run of minutes
        raise OutputError("exists already", where=out, remedy="choose another place with --out")
    runtime, path = subject_named(run.subject, run.oracle)
    geometry = open_oracle(run.oracle or str(model_of(runtime, path))).geometry
    with naming_the_option():
        key = parse_place(place, geometry)
    wanted = {key[1], *(name for _, name in sources_of(key, geometry).values())}
    recorded = runtime == "recorded" and run.subject is not None
    with make_plan(
        run.oracle,
        run.subject,
        layers=None if recorded else _layers(key, geometry),
        stages=tuple(STAGES) if recorded else tuple(name for name in STAGES if name in wanted),
        substages=True,
        prompt=run.prompt,
        tokens=run.tokens,
        arithmetic=run.arithmetic,
        options=run.options,
        program=run.program,
        seconds=run.seconds,
    ) as plan:
        trace, weights = _captured(plan, run)
        try:
            case = kernel_case(trace, weights, key)
        except AprFalsifyError as error:
            raise error.at(run.subject or run.oracle) from None
        write_kernel(case, trace, out)
    return _told(case, out)


def _layers(key: Key, geometry: Geometry) -> range:
    """Return the layers to run: of a stage of the whole model all, else its own."""
    return range(geometry.layers) if key[0] is None else range(key[0], key[0] + 1)


def _captured(plan: Plan, run: Run) -> tuple[Trace, Weights | None]:
    model = plan.oracle.model
    if run.subject is not None:
        own = plan.subject.model or model
        return plan.subject.capture(plan.request, MemorySink()), None if own is None else own.weights
    assert model is not None
    oracle = OracleRun(model=model, dtype=run.dtype or DEFAULT_DTYPES[run.device], device=run.device)
    return oracle.capture(plan.request, MemorySink()), model.weights


def _told(case: KernelCase, out: Path) -> str:
    layer, name = case.key
    place = name if layer is None else f"{name} of layer {layer}"
    files = len(case.inputs) + len(case.weights) + len(case.rows) + 1 + (case.captured is not None)
    if case.difference is None:
        return f"{place} in {out}: {files} arrays; the run did not capture the stage itself"
    differs = case.difference
    where = f", most at {differs.where}" if differs.max_abs > 0 else ""
    return f"{place} in {out}: {files} arrays; captured is rel L2 {differs.rel_l2:.1e} from expected{where}"
