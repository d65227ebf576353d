"""Which correct runs the exam has: models x arithmetics x texts x kernels; few of wide models."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, islice

from apr_falsify.exam.cases import ExamCase, Host
from apr_falsify.exam.kernels import OWN
from apr_falsify.exam.material import BLUEPRINTS, SETTINGS, Material, Setting
from apr_falsify.exam.plan import SMOLLM2, SMOLLM2_SETTING, WIDE_MODEL, ExamPlan
from apr_falsify.exam.store import Store
from apr_falsify.exam.texts import TEXTS, ExamText

LENGTHS = (7, 2, 33, 5, 16, 128, 3, 64, 9, 100, 4, 256, 20)
"""Token counts of correct runs, taken in turn: a prime number of them, so that every text has each."""

LONG = {31: 512, 67: 1024}
"""Every so many runs one is so long instead."""

SEEDS = 2
"""Seeds of each narrow model, at most."""

APR_SETTINGS: Mapping[str, str] = {
    "": "f32",
    "q4_k": "q4_k x q8 of 256",
    "q8_0": "f32",
    "f16": "f32",
    "f32": "f32",
}
"""GGUF format -> the arithmetic of ``apr`` on it: it widens to f32 what it does not keep."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WideRuns:
    """Correct runs of the wide model in one number format.

    Attributes:
        kind: the format of its weights.
        host: the host.
        setting: the arithmetic.
        texts: which texts, by name; empty for all.
        lengths: token counts, taken in turn over texts and kernels.
        kernels: under which kernels; empty for all.

    """

    kind: str
    host: str
    setting: str
    texts: tuple[str, ...] = ()
    lengths: tuple[int, ...] = (6, 16, 2, 9, 33)
    kernels: tuple[str, ...] = ()


_FEW = ("random", "one token repeated")
_Q4_K = "q4_k x q8 of 256"

WIDE: Sequence[WideRuns] = (
    # The real apr comes first: it needs as much memory as the oracle, which is not loaded yet.
    WideRuns(kind="q4_k", host="apr", setting=_Q4_K),
    WideRuns(kind="q4_k", host="formula", setting=_Q4_K),
    WideRuns(kind="q4_k", host="formula", setting="q4_k x q8_k of 256", texts=("natural", "runs of repeats")),
    WideRuns(kind="q4_k", host="torch", setting="f32", texts=_FEW),
    WideRuns(
        kind="q4_k", host="formula", setting=_Q4_K, texts=("natural",), lengths=(128,), kernels=("avx2",)
    ),
    WideRuns(kind="q4_k", host="formula", setting=_Q4_K, texts=_FEW, lengths=(256,), kernels=(OWN,)),
    WideRuns(kind="q4_k", host="formula", setting=_Q4_K, texts=("natural",), lengths=(1024,), kernels=(OWN,)),
    WideRuns(kind="q8_0", host="apr", setting="f32", texts=("natural",)),
    WideRuns(
        kind="q8_0", host="formula", setting="q8_0 x q8_0 of 32", texts=("natural", "one token repeated")
    ),
    WideRuns(kind="q8_0", host="torch", setting="f32", texts=("runs of repeats",)),
    WideRuns(kind="f16", host="apr", setting="f32", texts=("natural",), kernels=(OWN, "sse")),
    WideRuns(kind="f16", host="formula", setting="f32", texts=_FEW),
    WideRuns(kind="f16", host="formula", setting="f16", texts=("natural",)),
    WideRuns(kind="f16", host="torch", setting="bf16", texts=("one token, then another repeated",)),
    WideRuns(kind="f32", host="apr", setting="f32", texts=("natural",), kernels=("own on 2 threads",)),
    WideRuns(kind="f32", host="formula", setting="f32", texts=_FEW, kernels=(OWN, "avx on 2 threads", "sse")),
    WideRuns(
        kind="f32", host="torch", setting="f32", texts=("natural",), kernels=("own on 2 threads", "avx2")
    ),
)
"""Correct runs of the wide model; each takes seconds where a narrow one takes a tenth of one."""


def correct_runs(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give correct runs: models x settings x texts x kernels, on every host that has them."""
    for kernel in plan.kernels:
        turns = count()  # every kernel computes the very same runs
        narrow = (
            case
            for name in plan.models
            if name != WIDE_MODEL
            for case in _narrow(plan, store, hosts, kernel, name, turns)
        )
        yield from islice(narrow, 0, None, plan.correct)
    if WIDE_MODEL in plan.models:
        yield from _wide(plan, store, hosts)


def _narrow(
    plan: ExamPlan, store: Store, hosts: Mapping[str, Host], kernel: str, name: str, turns: Iterator[int]
) -> Iterator[ExamCase]:
    settings = SETTINGS.values() if name != SMOLLM2 else (SMOLLM2_SETTING,)
    for setting in settings:
        if setting.kind and setting.kind not in BLUEPRINTS[name].kinds:
            continue
        for seed in range(min(plan.seeds, SEEDS) if name != SMOLLM2 else 1):
            for host in ("formula", "torch", "apr"):
                for text in TEXTS.values():
                    material = Material(
                        name=name, seed=seed, kind=setting.kind, rows=_rows(hosts, host, text)
                    )
                    if material.rows and name == SMOLLM2:
                        continue
                    turn = next(turns)
                    length = min(_length(turn, name), plan.longest)
                    case = _case(store, hosts, host, material, setting, text, kernel, turn, length)
                    if case is not None:
                        yield case


def _rows(hosts: Mapping[str, Host], host: str, text: ExamText) -> str:
    fixed = host in hosts and hosts[host].fixed_tokens is not None
    return (text.rows_where_fixed or "") if fixed else text.rows


def _case(
    store: Store,
    hosts: Mapping[str, Host],
    host: str,
    material: Material,
    setting: Setting,
    text: ExamText,
    kernel: str,
    turn: int,
    length: int,
) -> ExamCase | None:
    """Return a correct run, ``None`` where the host cannot have it."""
    if host not in hosts or not hosts[host].runs(material, setting):
        return None
    fixed = hosts[host].fixed_tokens
    if fixed is not None and text.rows_where_fixed is None:
        return None
    vocab = store.geometry(material).vocab
    tokens = fixed or text.ids(turn, length, vocab, store.natural(material.name))
    return ExamCase(
        host=host, material=material, setting=setting, tokens=tokens, kernel=kernel, text=text.name
    )


def _length(turn: int, model: str) -> int:
    long = [length for every, length in LONG.items() if turn % every == every - 1]
    if long and model != SMOLLM2:  # thirty layers of it would take minutes
        return max(long)
    return LENGTHS[turn % len(LENGTHS)]


def _wide(plan: ExamPlan, store: Store, hosts: Mapping[str, Host]) -> Iterator[ExamCase]:
    """Give the wide runs, kernel by kernel and format by format, so that each file is made once."""
    for at, kernel in enumerate(plan.kernels):
        turns = count(at)
        for runs in WIDE:
            if runs.kernels and kernel not in runs.kernels:
                continue
            for text in (TEXTS[name] for name in runs.texts or TEXTS):
                turn = next(turns)
                rows = _rows(hosts, runs.host, text)
                # Block formats are drawn fast: each kernel has a model of its own.
                seed = at if runs.kind in ("q4_k", "q8_0") else 0
                material = Material(name=WIDE_MODEL, seed=seed, kind=runs.kind, rows=rows)
                length = runs.lengths[turn % len(runs.lengths)]
                setting = SETTINGS[runs.setting]
                case = _case(store, hosts, runs.host, material, setting, text, kernel, turn, length)
                if case is not None:
                    yield case
