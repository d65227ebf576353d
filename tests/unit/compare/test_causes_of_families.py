"""What a family does otherwise is explained there too; wrong values by torch, from the file's own tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch.nn import functional

from apr_falsify.compare.localise import bisect
from apr_falsify.model.stages import Key, Layout
from apr_falsify.traces.trace import StageArray
from tests.unit.compare.family_runs import Run, cause_of, run_of


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    @cache
    def made(recipe: str) -> Run:
        return run_of(tmp_path_factory.mktemp(recipe), recipe)

    return made


H = "transformer.h.1."
G = "model.layers.1."
IN: Key = Key(0, "post_ffn_residual")


def layer_norm(
    run: Run, *, weight: str = f"{H}ln_1.weight", bias: float = 1.0, eps: float = 1e-5
) -> torch.Tensor:
    return functional.layer_norm(run[IN], (96,), run.w(weight), bias * run.w(f"{H}ln_1.bias"), eps)


def gemma_norm(run: Run, x: Key, weight: str) -> torch.Tensor:
    return functional.rms_norm(run[x], (64,), 1 + run.w(weight), 1e-5)


def rows(run: Run, table: str, shift: int) -> torch.Tensor:
    return run.w(table)[torch.tensor(run.trace.tokens) + shift]


def half_still(run: Run) -> torch.Tensor:
    """q of Qwen3 with its head norm and without any rotation."""
    q = run[1, "qkv_bias"][:, :96].reshape(9, 4, 24)
    return functional.rms_norm(q, (24,), run.w(f"{G}self_attn.q_norm.weight"), 1e-5).reshape(9, 96)


WRONG: Mapping[str, tuple[str, Key, str, str, Callable[[Run], torch.Tensor]]] = {
    "epsilon of a LayerNorm": (
        "gpt2",
        Key(0, "attn_norm"),
        "epsilon",
        "epsilon 0.001",
        lambda r: functional.layer_norm(
            r[0, "embedding"],
            (96,),
            *(r.w(f"transformer.h.0.ln_1.{part}") for part in ("weight", "bias")),
            1e-3,
        ),
    ),
    "odd epsilon of a LayerNorm": (
        "gpt2",
        Key(1, "attn_norm"),
        "epsilon",
        "epsilon 0.23",
        lambda r: layer_norm(r, eps=0.23),
    ),
    "bias of a LayerNorm": (
        "gpt2",
        Key(1, "attn_norm"),
        "norm-form",
        "bias left out",
        lambda r: layer_norm(r, bias=0),
    ),
    "mean of a LayerNorm": (
        "gpt2",
        Key(1, "attn_norm"),
        "norm-form",
        "RMSNorm for LayerNorm",
        lambda r: functional.rms_norm(r[IN], (96,), r.w(f"{H}ln_1.weight"), 1e-5) + r.w(f"{H}ln_1.bias"),
    ),
    "weight of another LayerNorm": (
        "gpt2",
        Key(1, "attn_norm"),
        "other-weights",
        "ffn_norm for attn_norm",
        lambda r: layer_norm(r, weight=f"{H}ln_2.weight"),
    ),
    "activation without a gate": (
        "gpt2",
        Key(1, "ffn_silu"),
        "activation",
        "activation relu",
        lambda r: functional.relu(r[1, "ffn_up"]),
    ),
    "a tensor stored [in, out]": (
        "gpt2",
        Key(1, "attn_out"),
        "neighbour-weights",
        "weights of layer 2",
        lambda r: r[1, "attention"] @ r.w("transformer.h.2.attn.c_proj.weight") + r.w(f"{H}attn.c_proj.bias"),
    ),
    "rows beside learned positions": (
        "gpt2",
        Key(0, "embedding"),
        "other-row",
        r"token id \+ 1",
        lambda r: rows(r, "transformer.wte.weight", 1) + r.w("transformer.wpe.weight")[:9],
    ),
    "rows of a scaled embedding": (
        "gemma2",
        Key(0, "embedding"),
        "other-row",
        "token id - 1",
        lambda r: 8 * rows(r, "model.embed_tokens.weight", -1),
    ),
    "a norm with an offset": (
        "gemma2",
        Key(1, "attn_norm"),
        "neighbour-weights",
        "weights of layer 2",
        lambda r: gemma_norm(r, IN, "model.layers.2.input_layernorm.weight"),
    ),
    "another norm with an offset": (
        "gemma3",
        Key(1, "ffn_norm"),
        "other-weights",
        "attn_norm for ffn_norm",
        lambda r: gemma_norm(r, Key(1, "post_attn_residual"), f"{G}input_layernorm.weight"),
    ),
    "gate and up in one tensor": (
        "phi3",
        Key(1, "ffn_gate"),
        "swapped-gate-up",
        "up for gate",
        lambda r: r[1, "ffn_norm"] @ r.w(f"{G}mlp.gate_up_proj.weight")[80:].T,
    ),
    "no rotation and no attention factor": (
        "qwen3-biased-yarn-window",
        Key(1, "q_post_rope"),
        "rope-not-applied",
        "no rotation",
        half_still,
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_fault_gets_its_name_in_a_family_that_does_it_otherwise(
    name: str, runs: Callable[[str], Run]
) -> None:
    recipe, key, cause, says, wrong = WRONG[name]
    found = cause_of(runs(recipe), key, wrong(runs(recipe)))
    assert found is not None
    assert (found.name, found.fits) == (cause, True), found
    assert re.search(says, found.sentence), found.sentence


def test_a_stage_of_which_the_last_token_alone_was_captured_is_no_input_of_a_cause(
    runs: Callable[[str], Run],
) -> None:
    run = runs("gemma2")
    right = run.trace.stages
    stages = {
        **right,
        Key(1, "attn_out"): StageArray(data=right[1, "attn_out"].data[-1:], layout=(Layout.LAST_TOKEN,)),
        Key(1, "ffn_norm"): StageArray(data=right[1, "ffn_norm"].data[::-1] * 1.5, layout=()),
    }
    result = bisect(run.trace, replace(run.trace, stages=stages), weights=run.model.weights, layers=[1])

    assert result.breakdowns == ()
    assert (1, ("ffn_norm",)) in [(source.layer, source.stages) for source in result.sources]
