"""SmolLM2-135M in Q4_1: 30 layers of real quantised weights."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apr_falsify.formats.aprt import read_aprt
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import STAGES, Key
from apr_falsify.oracle.capture import capture, forward
from apr_falsify.oracle.tokenizer import decode, encode
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.real_model import smollm2_or_skip
from tests.support import DATA

pytestmark = pytest.mark.real_model
PROMPT = "What is 2+2?"
IDS = (1780, 314, 216, 34, 27, 34, 47)


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model(smollm2_or_skip())


@pytest.fixture(scope="module")
def oracle(model: Model) -> Trace:
    request = Request(tokens=IDS, layers=range(30), stages=tuple(STAGES), prompt=PROMPT)
    return capture(model, request, MemorySink())


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(x @ y / np.sqrt((x @ x) * (y @ y)))


def test_the_prompt_has_the_ids_that_apr_and_huggingface_give(model: Model) -> None:
    assert encode(model, PROMPT) == IDS
    assert decode(model, IDS) == PROMPT


def test_all_30_layers_agree_with_the_embedded_runtime(model: Model, oracle: Trace) -> None:
    request = Request(tokens=IDS, layers=range(30), stages=tuple(STAGES))
    subject = embedded.capture(model, request, MemorySink())

    assert len(oracle.stages) == 1 + 30 * 16 + 2
    assert set(subject.stages) == set(oracle.stages)
    worst = min(cosine(array.data, subject.stages[key].data) for key, array in oracle.stages.items())
    assert worst > 0.99999


def test_the_real_apr_recorded_the_same_residual_stream(oracle: Trace) -> None:
    for key in [Key(11, "post_ffn_residual"), Key(28, "post_ffn_residual"), Key(None, "lm_head")]:
        folder = DATA / "apr-smollm2-135m"
        path = folder / f"{key[1]}.bin" if key[0] is None else folder / f"layer-{key[0]}" / f"{key[1]}.bin"
        assert cosine(oracle.stages[key].data, read_aprt(Path(path)).values) > 0.9999999


def test_capture_changes_no_bit_of_the_logits(model: Model, oracle: Trace) -> None:
    assert oracle.stages[None, "lm_head"].data.tobytes() == forward(model, IDS)[-1].tobytes()
    assert oracle.provenance.argmax is not None
    assert oracle.provenance.argmax["text"] == decode(model, (oracle.provenance.argmax["id"],))
