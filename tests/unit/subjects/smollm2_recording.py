"""The recorded run of SmolLM2 in llama.cpp, read as arrays, for tests that change it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.model.stages import Key
from apr_falsify.subjects.llama_cpp.graph import stages_of_capture
from apr_falsify.traces.trace import StageArray
from tests.support import DATA
from tests.unit.helpers import small_geometry

RECORDING = DATA / "llama-cpp-smollm2-135m" / "what-is-2-plus-2.npz"
TOKENS = 7
SMOLLM2 = small_geometry(
    hidden_size=576,
    intermediate_size=1536,
    num_attention_heads=9,
    num_key_value_heads=3,
    vocab_size=49_152,
    num_hidden_layers=30,
)

Arrays = dict[str, npt.NDArray[Any]]


def recorded_nodes() -> Arrays:
    with np.load(RECORDING) as file:
        return {name: file[name] for name in file.files}


def read(arrays: Mapping[str, npt.NDArray[Any]], tokens: int = TOKENS) -> dict[Key, StageArray]:
    return dict(stages_of_capture(arrays, SMOLLM2, tokens, True, RECORDING))
