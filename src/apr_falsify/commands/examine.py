"""Puts the exam together: which models are at hand, which hosts, the oracle, and progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apr_falsify.capture import Request, TraceWriter
from apr_falsify.commands.apr_host import find_apr
from apr_falsify.commands.hosts import FormulaHost, TensorHost, TorchHost
from apr_falsify.commands.sides import DEFAULT_MODEL
from apr_falsify.errors import UsageError, nearest
from apr_falsify.exam.cases import Host
from apr_falsify.exam.material import Material, Store
from apr_falsify.exam.plan import APR_MODELS, MODELS, SMOLLM2, Plan
from apr_falsify.exam.sitting import Sitting, Watch, sit
from apr_falsify.exam.trial import CaptureOracle, Examiner
from apr_falsify.faults import CATALOGUE
from apr_falsify.folders import CACHE_VARIABLE, cache_folder
from apr_falsify.oracle.capture import load
from apr_falsify.subjects.logs import scratch
from apr_falsify.trace import Trace

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

QUICK_FAULTS = 6
"""With ``--quick``: every n-th fault."""


def chosen_models(text: str | None) -> tuple[str, ...] | None:
    """Return the models that ``--models`` names, ``None`` for all that are at hand.

    Raises:
        UsageError: one that is not known, or not at hand.

    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in MODELS:
            raise UsageError(
                f"no model {name!r}",
                where="--models",
                expected=", ".join(MODELS),
                remedy=nearest(name, MODELS),
            )
    if SMOLLM2 in names and not smollm2_path().is_file():
        raise UsageError(
            f"{SMOLLM2} is not at hand",
            where="--models",
            expected=str(smollm2_path()),
            remedy=f"set {CACHE_VARIABLE} to the folder that holds {SMOLLM2_FILE}",
        )
    return names


def smollm2_path() -> Path:
    """Return where SmolLM2's GGUF file is looked for."""
    return cache_folder() / SMOLLM2_FILE


def examine(models: tuple[str, ...] | None, *, seeds: int, quick: bool) -> Sitting:
    """Hold the exam.

    Args:
        models: the models, ``None`` for all that are at hand.
        seeds: how many seeds of each.
        quick: whether only a small part of it is held.

    Raises:
        MissingDependencyError: torch or transformers is not installed.

    """
    names, not_run = (models, []) if models is not None else _at_hand()
    with scratch("exam") as directory:
        store = Store(directory, DEFAULT_MODEL, {SMOLLM2: smollm2_path()})
        hosts, absent = _hosts(store, directory)
        plan = _quick(names) if quick else Plan(models=names, seeds=seeds)
        examiner = Examiner(store, hosts, oracle_of(store), directory)
        with _watched() as watch:
            sitting = sit(plan, store, hosts, examiner, watch)
    sitting.not_run += [*not_run, *absent]
    return sitting


def _quick(names: tuple[str, ...]) -> Plan:
    small = tuple(name for name in names if name != SMOLLM2)
    return Plan(models=small, seeds=1, faults=CATALOGUE[::QUICK_FAULTS], pairs=24, correct=12)


def _at_hand() -> tuple[tuple[str, ...], list[str]]:
    if smollm2_path().is_file():
        return MODELS, []
    return tuple(name for name in MODELS if name != SMOLLM2), [f"{SMOLLM2}: {smollm2_path()} is not there"]


def _hosts(store: Store, directory: Path) -> tuple[dict[str, Host], list[str]]:
    hosts: dict[str, Host] = {
        "formula": FormulaHost(),
        "tensors": TensorHost(readable=False),
        "conversion": TensorHost(readable=True),
        "torch": TorchHost(),
    }
    apr = find_apr(store, directory, APR_MODELS)
    if apr is None:
        return hosts, ["the real apr: no program `apr` on PATH"]
    return {**hosts, "apr": apr}, []


def oracle_of(store: Store) -> CaptureOracle:
    """Return what captures the oracle on models of ``store``, each loaded once."""
    loaded: dict[Material, Any] = {}

    def run(material: Material, request: Request, directory: Path) -> Trace:
        if material not in loaded:
            model = store.model(material)
            whole = request.layers.stop == model.geometry.layers
            loaded[material] = load(model, layers=request.layers.stop, head=whole)
        with TraceWriter(directory) as writer:
            trace: Trace = loaded[material].capture(request, writer)
        return trace

    return run


@contextmanager
def _watched() -> Iterator[Watch]:
    """Show a bar per part of the exam on a terminal's stderr; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda title, done, total: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, Any] = {}

        def watch(title: str, done: int, total: int) -> None:
            if title not in tasks:
                tasks[title] = progress.add_task(title, total=total)
            progress.update(tasks[title], completed=done)

        yield watch
