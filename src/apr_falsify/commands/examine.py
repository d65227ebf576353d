"""Puts the exam together: which models are at hand, which hosts, the oracle, and progress on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apr_falsify.commands.apr_host import find_apr, with_tokens
from apr_falsify.commands.exam_pool import Pool, Watch
from apr_falsify.commands.hosts import TorchModels
from apr_falsify.commands.hosts_in_passes import hosts_of
from apr_falsify.commands.smollm2 import SMOLLM2_FILE, smollm2_path
from apr_falsify.commands.specs import DEFAULT_MODEL
from apr_falsify.errors import MissingDependencyError, UsageError, nearest
from apr_falsify.exam.cases import ExamCase, Host
from apr_falsify.exam.examination import Examination, again, sit
from apr_falsify.exam.faults import PLAIN
from apr_falsify.exam.kernels import KERNELS, OWN
from apr_falsify.exam.plan import MODELS, PARTS, SMOLLM2, WIDE_MODEL, ExamPlan
from apr_falsify.exam.recipes import case_of
from apr_falsify.exam.results import Results
from apr_falsify.exam.store import Store
from apr_falsify.folders import CACHE_VARIABLE
from apr_falsify.formats.weights import Model
from apr_falsify.oracle.tokenizer import encode
from apr_falsify.portable import portable_text
from apr_falsify.reading import read_json
from apr_falsify.subjects.logs import scratch

QUICK_FAULTS = 8
"""With ``--quick``: every n-th fault."""

QUICK_CORRECT = 41
"""With ``--quick``: every n-th correct run of narrow models; prime, so that every text has its turn."""

QUICK_FURTHER = 149
"""With ``--quick``: every n-th case with passes or quantised weights."""

QUICK_KERNELS = (OWN, "sse")
QUICK_LONGEST = 128

INSTALL_ORACLE = "pip install 'apr-falsify[oracle]'"

WIDE_MEMORY = 5 << 30
"""Bytes that a wide model takes, with its oracle in f32 and the real apr beside it."""


def chosen_models(text: str | None) -> tuple[str, ...] | None:
    """Return the models that ``--models`` names, ``None`` for all that are at hand.

    Raises:
        UsageError: one that is not known, or not at hand.

    """
    names = chosen(text, MODELS, "--models")
    if names is not None and SMOLLM2 in names and not smollm2_path().is_file():
        raise UsageError(
            f"{SMOLLM2} is not at hand",
            where="--models",
            expected=str(smollm2_path()),
            remedy=f"set {CACHE_VARIABLE} to the folder that holds {SMOLLM2_FILE}",
        )
    return names


def chosen(text: str | None, known: Collection[str], option: str) -> tuple[str, ...] | None:
    """Return the names that ``text`` lists, ``None`` where it is not given.

    Raises:
        UsageError: one that is not in ``known``.

    """
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in known:
            what = f"no {option.removeprefix('--').removesuffix('s')} {name!r}"
            raise UsageError(what, where=option, expected=", ".join(known), remedy=nearest(name, known))
    return names


def cases_in(path: Path) -> tuple[ExamCase, ...]:
    """Return the case that a file describes, or those of all failures of an exam's JSON result.

    Raises:
        UsageError: it is neither, or lists none.

    """
    try:
        found = read_json(path)
    except (OSError, ValueError) as error:
        raise UsageError(f"not JSON: {error}", where=path, expected="a case, or an exam's result") from error
    failures = found.get("failures") if isinstance(found, dict) else None
    if failures == []:
        raise UsageError("it lists no failure", where=path, expected="at least one case to run again")
    listed = [found] if failures is None else [each["recipe"] for each in failures]
    return tuple(case_of(recipe, path) for recipe in listed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What an exam shall contain.

    Attributes:
        models: the models, ``None`` for all that are at hand.
        seeds: how many seeds of each.
        quick: whether only a small part of it is run.
        parts: the parts that are run.
        kernels: the kernels under which correct models run.
        jobs: how many worker processes run at a time.
        results: where outcomes are stored, and taken from, ``None`` for nowhere.
        cases: recipes of cases to run instead.

    """

    models: tuple[str, ...] | None = None
    seeds: int = 3
    quick: bool = False
    parts: tuple[str, ...] = PARTS
    kernels: tuple[str, ...] | None = None
    jobs: int = 1
    results: Path | None = None
    cases: tuple[ExamCase, ...] = ()


def examine(wanted: Wanted) -> Examination:
    """Run the exam.

    Raises:
        MissingDependencyError: torch or transformers is not installed.
        UsageError: the results file is not one, or of other code.
        ProcessError: a worker process could not be started.

    """

    _check_torch()
    results = Results(wanted.results)
    with scratch("exam") as directory, _watched() as watch:
        hold = Pool(directory, wanted.jobs, results, watch)
        with hold:
            examination = again(wanted.cases, hold) if wanted.cases else _whole(wanted, hold.models, hold)
    examination.kernels = results.kernels
    return examination


def _check_torch() -> None:
    """Check for what workers import, without importing it: that would cost this process seconds."""
    for name in ("torch", "transformers"):
        if find_spec(name) is None:
            raise MissingDependencyError(
                f"the exam needs {name}", expected="torch and transformers", remedy=INSTALL_ORACLE
            )


def _whole(wanted: Wanted, models: Path, hold: Pool) -> Examination:
    names, not_run = (wanted.models, []) if wanted.models is not None else _at_hand()
    store = Store(models, DEFAULT_MODEL, {SMOLLM2: smollm2_path()}, encode=_encode)
    hosts, absent = _hosts(store, models)
    examination = sit(_planned(names, wanted), store, hosts, hold)
    examination.not_run += [*not_run, *absent]
    return examination


def _planned(names: tuple[str, ...], wanted: Wanted) -> ExamPlan:
    if not wanted.quick:
        kernels = wanted.kernels or tuple(KERNELS)
        return ExamPlan(models=names, seeds=wanted.seeds, kernels=kernels, parts=wanted.parts)
    return ExamPlan(
        models=tuple(name for name in names if name not in (SMOLLM2, WIDE_MODEL)),
        seeds=1,
        faults=PLAIN[::QUICK_FAULTS],
        repetitive=1,
        pairs=12,
        correct=QUICK_CORRECT,
        kernels=wanted.kernels or QUICK_KERNELS,
        longest=QUICK_LONGEST,
        further=QUICK_FURTHER,
        parts=wanted.parts,
    )


def _at_hand() -> tuple[tuple[str, ...], list[str]]:
    absent: dict[str, str] = {}
    if not smollm2_path().is_file():
        absent[SMOLLM2] = f"{portable_text(str(smollm2_path()))} is not there"
    if (free := _free_memory()) is not None and free < WIDE_MEMORY:
        absent[WIDE_MODEL] = f"it takes {WIDE_MEMORY >> 30} GiB of memory, and {free / 2**30:.1f} are free"
    return tuple(name for name in MODELS if name not in absent), [f"{n}: {why}" for n, why in absent.items()]


def _free_memory() -> int | None:
    """Return how many bytes of memory programs may still take, ``None`` where that is not known."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    return None


def _encode(model: Model, text: str) -> tuple[int, ...]:
    """Return the ids of ``text``; a directory's byte-level tokenizer needs no transformers."""
    if model.path.is_file():
        return encode(model, text)
    from tokenizers import Tokenizer

    return tuple(Tokenizer.from_file(str(model.path / "tokenizer.json")).encode(text).ids)


def _hosts(store: Store, directory: Path) -> tuple[dict[str, Host], list[str]]:
    """Return the hosts that the exam is planned for; workers have their own."""
    hosts = hosts_of(TorchModels(store))
    apr = find_apr(directory, lambda material: None)
    if apr is None:
        return hosts, ["the real apr: no program `apr` on PATH"]
    return {**hosts, "apr": with_tokens(apr, store)}, []


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
