"""A rotary scaling that the model does not have is named with its parameters, read off the turned pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.unit.compare.wrong_stages import Run, explained, small_run

D, THETA = 32, 10_000.0

F64 = npt.NDArray[np.float64]


@pytest.fixture(scope="module")
def run() -> Run:
    return small_run((3, 1, 4, 1, 5, 9, 2), hidden_size=128, num_attention_heads=4, num_key_value_heads=2)


def turned(run: Run, frequencies: F64, factor: float = 1.0) -> npt.NDArray[np.float32]:
    """RoPE of q by complex numbers."""
    fused = run["qkv_matmul"]
    heads = fused[:, : 4 * D].reshape(len(fused), -1, D)
    angles = np.outer(np.arange(len(fused)), frequencies)
    z = (heads[..., : D // 2] + 1j * heads[..., D // 2 :]) * np.exp(1j * angles)[:, None] * factor
    return np.concatenate((z.real, z.imag), -1).reshape(len(fused), -1).astype(np.float32)


def plain(base: float, divisor: float = 1.0) -> F64:
    return np.asarray(base ** (-np.arange(0, D, 2) / D) / divisor)


@pytest.mark.parametrize(
    ("base", "divisor", "said"),
    [
        (THETA, 3.0, "positions divided by 3 (linear scaling) fits"),
        (50_000.0, 2.0, "RoPE base 50000 and positions divided by 2 (linear scaling) fits"),
        (8_000.0, 1 / 0.3, "RoPE base 8000 and positions divided by 3.33333 (linear scaling) fits"),
        (1e6, 0.5, "RoPE base 1000000 and positions divided by 0.5 (linear scaling) fits"),
    ],
)
def test_another_base_and_a_linear_scaling_are_told_apart(
    base: float, divisor: float, said: str, run: Run
) -> None:
    cause = explained(run, "q_post_rope", turned(run, plain(base, divisor)))
    assert cause is not None
    assert (cause.name, cause.fits) == ("rope-scaling", True)
    assert said in cause.sentence


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"factor": 4.0, "original_max_position_embeddings": 2048}, "factor 4, context 2048 "),
        ({"factor": 10.0, "original_max_position_embeddings": 4096}, "factor 10, context 4096 "),
        (
            {"factor": 4.0, "original_max_position_embeddings": 512, "attention_factor": 1.0},
            "factor 4, context 512 and attention factor 1 ",
        ),
    ],
    ids=str,
)
def test_a_yarn_scaling_is_named_with_its_factor_and_context(
    parameters: dict[str, Any], said: str, run: Run
) -> None:
    """The frequencies and the attention factor are those of transformers."""
    config = LlamaConfig(
        hidden_size=128,
        num_attention_heads=4,
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "yarn", "rope_theta": THETA, **parameters},
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS["yarn"](config, "cpu")
    cause = explained(run, "q_post_rope", turned(run, frequencies.double().numpy(), factor))
    assert cause is not None
    assert (cause.name, cause.fits) == ("rope-scaling", True)
    assert f"yarn scaling with {said}" in cause.sentence
