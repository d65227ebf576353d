"""``apr-falsify capture ... --export-replay STAGE@LAYER``: run what one kernel needs, and write it down."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from apr_falsify.commands.kernel_files import write_kernel
from apr_falsify.commands.options import Sides, naming_the_option
from apr_falsify.commands.sides import Plan, make_plan, oracle_run
from apr_falsify.commands.specs import model_of, open_oracle, subject_named
from apr_falsify.compare.kernel_case import KernelCase, kernel_case, parse_place, sources_of
from apr_falsify.errors import AprFalsifyError, OutputError
from apr_falsify.formats.weights import Weights
from apr_falsify.model.shape import Geometry
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """How the side is run, as the command line says.

    Attributes:
        subject: ``RUNTIME:PATH``, ``None`` for the oracle.
        oracle: the model, or a trace of it.
        sides: how the subject is run; its layers and stages do not matter.
        dtype: the oracle's number format.
        device: where the oracle runs.

    """

    subject: str | None
    oracle: str | None
    sides: Sides
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
    recorded = runtime == "recorded" and run.subject is not None
    sides: Sides = {
        **run.sides,
        "layers": None if recorded else _layers(key, geometry),
        "stages": tuple(STAGES) if recorded else _stages(key, geometry),
        "substages": True,
    }
    with make_plan(run.oracle, run.subject, **sides) as plan:
        trace, weights = _captured(plan, run)
        try:
            case = kernel_case(trace, weights, key)
        except AprFalsifyError as error:
            raise error.at(run.subject or run.oracle) from None
        write_kernel(case, trace, out)
    return _summary(case, out)


def _layers(key: Key, geometry: Geometry) -> range:
    """Return the layers to run: of a stage of the whole model all, else its own."""
    return range(geometry.layers) if key.layer is None else range(key.layer, key.layer + 1)


def _stages(key: Key, geometry: Geometry) -> tuple[str, ...]:
    """Return the stages to keep: that of ``key`` and those it is computed from."""
    wanted = {key.stage, *(name for _, name in sources_of(key, geometry).values())}
    return tuple(name for name in STAGES if name in wanted)


def _captured(plan: Plan, run: Run) -> tuple[Trace, Weights | None]:
    if run.subject is not None:
        own = plan.subject.model or plan.oracle.model
        return plan.subject.capture(plan.request, MemorySink()), None if own is None else own.weights
    oracle = oracle_run(plan.oracle, run.dtype, run.device)
    return oracle.capture(plan.request, MemorySink()), oracle.model.weights


def _summary(case: KernelCase, out: Path) -> str:
    layer, name = case.key
    place = name if layer is None else f"{name} of layer {layer}"
    files = len(case.inputs) + len(case.weights) + len(case.rows) + 1 + (case.captured is not None)
    if case.difference is None:
        return f"{place} in {out}: {files} arrays; the run did not capture the stage itself"
    differs = case.difference
    where = f", most at {differs.where}" if differs.max_abs > 0 else ""
    return f"{place} in {out}: {files} arrays; captured is rel L2 {differs.rel_l2:.1e} from expected{where}"
