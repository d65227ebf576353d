"""Rows, findings and judged stages made by hand, for tests of what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apr_falsify.compare.axes import Axes
from apr_falsify.compare.bisection import Finding, FindingType, Row, Status, Verdict
from apr_falsify.compare.fit import Fit
from apr_falsify.compare.judge import Judged
from apr_falsify.compare.metrics import Metrics, compare_arrays
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.numerics.operand_rules import PLAIN, RULES, Operation, Rule

Q8 = next(rule for rule in RULES[Operation.PROJECTION] if rule.name == "q8_0 blocks of 32")
SOURCE, WEIGHTS = FindingType.SOURCE, FindingType.WEIGHTS


def finding(kind: FindingType, **more: Any) -> Finding:
    return Finding(type=kind, explanation="", **more)


def fit(excess: float = 0.5, rule: Rule = PLAIN, residual: float = 1e-7, share: float = 1.0) -> Fit:
    return Fit(rule=rule, residual=residual, floor=2e-7, excess=excess, share=share)


def entry(name: str, excess: float | None = 0.5, layer: int | None = 0, **more: Any) -> Judged:
    own = None if excess is None else fit(excess)
    operation = Operation.PROJECTION if STAGES[name].product else Operation.ELEMENTWISE
    operation = {"attn_scores": Operation.SCORES, "attention": Operation.MIX}.get(name, operation)
    return Judged(**{"key": Key(layer, name), "operation": operation, "fit": own, "weight_type": "", **more})


def of(*entries: Judged) -> Mapping[Key, Judged]:
    return {each.key: each for each in entries}


def metrics(rel_l2: float) -> Metrics:
    oracle = np.ones((1, 4))
    return compare_arrays(oracle, oracle * (1 + rel_l2), Axes(names=("token", "channel")))


def row(stage: str, verdict: Verdict = Verdict.WITHIN_FLOOR, layer: int | None = 0, **more: Any) -> Row:
    return Row(**{"layer": layer, "stage": stage, "status": Status.COMPARED, "verdict": verdict, **more})
