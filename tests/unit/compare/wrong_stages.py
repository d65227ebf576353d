"""Wrong stages for tests of explanations, worked out from captured stages with plain NumPy and torch.

Nothing here is shared with the variations under test: formulas are written anew, weights are read by name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.numpy import load_file

from apr_falsify.compare.cause import Cause
from apr_falsify.compare.causes import explain
from apr_falsify.compare.judge import store_of
from apr_falsify.compare.replay import Replayer
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import PLAIN, Rule
from apr_falsify.operators.roundoff import LIMIT
from apr_falsify.subjects.embedded import capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import StageArray, Trace
from tests.unit.helpers import TINY, small_model

F64 = npt.NDArray[np.float64]
TOKENS = (274, 272, 223, 20, 13, 20, 33)
LAYER = 1
H, K, D, E = 8, 2, 32, 256  # heads, kv heads, head_dim and hidden of the tiny checkpoint
THETA = 1e6  # its rotary base
ROUND: Mapping[str, Callable[[F64], npt.NDArray[Any]]] = {
    "f32": lambda x: x.astype(np.float32),
    "f16": lambda x: x.astype(np.float16).astype(np.float32),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A captured run, its stages by name in one layer, and its weights by their names in the file."""

    trace: Trace
    model: Model | None
    tensors: Mapping[str, npt.NDArray[Any]]
    layer: int = LAYER

    def __getitem__(self, name: str) -> F64:
        layer = {"embedding": 0, "final_norm": None, "lm_head": None}.get(name, self.layer)
        if name == "layer_input":
            name, layer = "post_ffn_residual", self.layer - 1
        return self.trace.stages[layer, name].data.astype(np.float64)

    def w(self, name: str, layer: int = LAYER) -> F64:
        """Return a weight of a layer by the end of its name."""
        prefix = "" if name in self.tensors else f"model.layers.{layer}."
        return self.tensors[prefix + name].astype(np.float64)


def tiny_run(dtype: str = "f32", tokens: tuple[int, ...] = TOKENS) -> Run:
    """Capture the tiny Qwen2 checkpoint."""
    model = open_model(TINY)
    request = Request(tokens=tokens, layers=range(model.geometry.layers), stages=tuple(STAGES))
    trace = capture(model, request, MemorySink(), dtype=dtype)
    return Run(trace=trace, model=model, tensors=load_file(TINY / "model.safetensors"))


def small_run(tokens: tuple[int, ...] = (3, 1, 4, 1, 5), **knobs: Any) -> Run:
    """Capture a random small model."""
    model = small_model(**knobs)
    request = Request(tokens=tokens, layers=range(model.geometry.layers), stages=tuple(STAGES))
    trace = capture(model, request, MemorySink())
    tensors = {name: tensor.rows(0, tensor.shape[0]) for name, tensor in model.weights.tensors.items()}
    return Run(trace=trace, model=model, tensors=tensors)


def explained(
    run: Run, stage: str, wrong: npt.NDArray[Any], *, rule: Rule = PLAIN, without: tuple[str, ...] = ()
) -> Cause | None:
    """Put ``wrong`` in the place of ``stage`` and ask for its cause."""
    layer = {"embedding": 0, "final_norm": None, "lm_head": None}.get(stage, run.layer)
    array = run.trace.stages[layer, stage]
    stages = {key: value for key, value in run.trace.stages.items() if key[1] not in without}
    stages[layer, stage] = StageArray(data=wrong.reshape(array.data.shape), layout=array.layout)
    trace = replace(run.trace, stages=stages)
    replayer = Replayer(trace, run.model.weights if run.model else None, store_of(trace))
    subject = replayer.captured(Key(layer, stage))
    assert subject is not None
    return explain(replayer, Key(layer, stage), rule, subject, LIMIT)


def softmax(scores: F64, visible: npt.NDArray[np.bool_], dim: int = -1) -> F64:
    masked = torch.from_numpy(scores).masked_fill(torch.from_numpy(~visible), -math.inf)
    return np.nan_to_num(torch.softmax(masked, dim=dim).numpy())


def back(tokens: int) -> npt.NDArray[np.intp]:
    i, j = np.mgrid[:tokens, :tokens]
    return i - j


def rotated(x: F64, theta: float, positions: npt.NDArray[Any] | None = None, sign: int = 1) -> F64:
    """RoPE of [S, heads * 32] as HuggingFace writes it: x * cos + rotate_half(x) * sin."""
    heads = torch.from_numpy(x.copy()).view(len(x), -1, D).transpose(0, 1)
    at = torch.arange(len(x)) if positions is None else torch.from_numpy(np.asarray(positions))
    inverse = 1.0 / theta ** (torch.arange(0, D, 2, dtype=torch.float64) / D)
    angles = torch.outer(at.double(), inverse) * sign
    cos, sin = (torch.cat((f(angles), f(angles)), -1) for f in (torch.cos, torch.sin))
    half = torch.cat((-heads[..., D // 2 :], heads[..., : D // 2]), -1)
    return (heads * cos + half * sin).transpose(0, 1).reshape(x.shape).numpy()


def rotated_pairs(x: F64, theta: float) -> F64:
    """RoPE of neighbouring channels, as complex numbers (the form of Meta's own release)."""
    pairs = torch.view_as_complex(torch.from_numpy(x.copy()).view(len(x), -1, D // 2, 2))
    inverse = 1.0 / theta ** (torch.arange(0, D, 2, dtype=torch.float64) / D)
    turn = torch.polar(
        torch.ones(len(x), D // 2, dtype=torch.float64), torch.outer(torch.arange(len(x)).double(), inverse)
    )
    return torch.view_as_real(pairs * turn[:, None]).reshape(x.shape).numpy()


def rms(x: F64, w: F64 | float, eps: float = 1e-6) -> F64:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * w


def split(x: F64, heads: int) -> F64:
    """[S, heads * D] -> [heads, S, D]."""
    return np.stack(np.split(x, heads, axis=1))


def merged(heads: F64) -> F64:
    return np.concatenate(list(heads), axis=1)


def scores(q: F64, k: F64, mapping: list[int]) -> F64:
    qs, ks = split(q, H), split(k, K)
    return np.stack([qs[h] @ ks[mapping[h]].T for h in range(H)]) / math.sqrt(D)


def mixed(weights: F64, v: F64, mapping: list[int]) -> F64:
    vs = split(v, K)
    return merged(np.stack([weights[h] @ vs[mapping[h]] for h in range(H)]))


OWN = [h // (H // K) for h in range(H)]
MODULO = [h % K for h in range(H)]


def biases(run: Run) -> list[F64]:
    return [run.w(f"self_attn.{role}_proj.bias") for role in "qkv"]


def with_biases(run: Run, q: float = 1, k: float = 1, v: float = 1) -> F64:
    return run["qkv_matmul"] + np.concatenate([n * b for n, b in zip((q, k, v), biases(run), strict=True)])


def q_of(run: Run) -> F64:
    return run["qkv_bias"][:, : H * D]


def k_of(run: Run) -> F64:
    return run["qkv_bias"][:, H * D : (H + K) * D]


def v_of(run: Run) -> F64:
    return run["qkv_bias"][:, (H + K) * D :]


_MEASURED = re.compile(r"<([^>]+)>")
_NUMBER = r"(-?\d+(?:\.\d+)?(?:e[-+]\d+)?)"


def assert_says(sentence: str, says: str, dtype: str, digits: int = 5) -> None:
    """Check that the pattern ``says`` is in ``sentence``, a number <in brackets> to within rounding.

    Such a number is measured on stages that either side has rounded to ``dtype``: each is off by the unit
    roundoff at most, and so is what the least squares make of them. How it is off within that depends on the
    processor. It is printed in ``digits`` digits.
    """
    found = re.search(_MEASURED.sub(lambda _: _NUMBER, says), sentence)
    assert found is not None, sentence
    allowed = 0.5 * 10.0 ** (1 - digits) + 2 * FORMATS[dtype].unit_roundoff
    meant = [float(number) for number in _MEASURED.findall(says)]
    assert [float(number) for number in found.groups()] == pytest.approx(meant, rel=allowed), sentence


@dataclass(frozen=True, slots=True, kw_only=True)
class Wrong:
    """A fault: the stage, what it makes of it, and the cause that should be named.

    What it says is a pattern; numbers <in brackets> are measured ones, see :func:`assert_says`.
    """

    stage: str
    cause: str
    says: str
    make: Callable[[Run], F64]
    f16: bool = True


def wrong(stage: str, cause: str, says: str, make: Callable[[Run], F64], *, f16: bool = True) -> Wrong:
    return Wrong(stage=stage, cause=cause, says=says, make=make, f16=f16)


def changed(x: F64, at: object, by: float) -> F64:
    x = x.copy()
    x[at] *= by
    return x
