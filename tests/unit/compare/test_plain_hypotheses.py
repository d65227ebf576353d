"""What is told of weights that are not quite the checkpoint's before anything is accused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from apr_falsify.compare.bisection import Bisection, FindingType, Kind
from apr_falsify.compare.localise import bisect
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.stages import Key
from apr_falsify.numerics.arithmetic import FORMATS
from apr_falsify.numerics.operand_rules import RULES, Operation
from apr_falsify.subjects.embedded import capture
from apr_falsify.subjects.kernel import Arithmetic
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.checkpoints import make_checkpoint
from tests.unit.compare.ports import accused, port
from tests.unit.compare.spoiled import Change, request_of, spoiled_run

pytestmark = pytest.mark.bare

TOKENS = 16
Matrix = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return open_model(make_checkpoint(tmp_path_factory.mktemp("llama") / "model", "llama"))


@pytest.fixture(scope="module")
def reference(model: Model) -> Trace:
    return spoiled_run(model, request_of(model, TOKENS), {})


def with_weights(model: Model, folder: Path, change: Callable[[str, Matrix], Matrix]) -> Model:
    """Return a checkpoint of which each matrix is ``change`` of its name and values."""
    folder.mkdir()
    (folder / "config.json").write_text((model.path / "config.json").read_text())
    for file in model.files:
        tensors = {
            name: np.ascontiguousarray(change(name, x) if x.ndim == 2 else x)
            for name, x in load_file(file).items()
        }
        save_file(tensors, folder / file.name)
    return open_model(folder)


def run(model: Model, spoils: dict[Key, Change] | None = None) -> Trace:
    return port(spoiled_run(model, request_of(model, TOKENS), spoils or {}), dtype="f32")


def told(found: Bisection, kind: FindingType) -> list[str]:
    return [finding.explanation for finding in found.findings if finding.type is kind]


# --- rounded weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
@pytest.mark.parametrize("alone", [False, True])
def test_weights_rounded_to_16_bits_are_told_of_a_run_in_f32(
    model: Model, reference: Trace, dtype: str, alone: bool
) -> None:
    weights = replace(model.weights, cast_to=FORMATS[dtype], matrices_alone=alone)
    found = bisect(reference, run(replace(model, weights=weights)), weights=model.weights)
    assert found.kind is Kind.CONSISTENT
    (words,) = told(found, FindingType.RECORDING)
    assert words.startswith(f"the {'matrices' if alone else 'weights'} are rounded to {dtype}:")


def test_products_that_round_weights_and_inputs_are_told_as_both(model: Model, reference: Trace) -> None:
    weights = replace(model.weights, cast_to=FORMATS["bf16"])
    (rule,) = [rule for rule in RULES[Operation.PROJECTION] if rule.name == "bf16"]
    arithmetic = Arithmetic(rules={Operation.PROJECTION: rule})
    request = request_of(model, TOKENS)
    trace = capture(replace(model, weights=weights), request, MemorySink(), arithmetic=arithmetic)
    found = bisect(reference, port(trace, dtype="f32"), weights=model.weights)
    assert found.kind is Kind.CONSISTENT
    assert [words.partition(":")[0] for words in told(found, FindingType.RECORDING)] == [
        "the weights are rounded to bf16"
    ]
    products = {name for one in found.findings if one.type is FindingType.ARITHMETIC for name in one.stages}
    assert {"qkv_matmul", "attn_out", "ffn_out"} <= products


def test_a_fault_beside_rounded_weights_is_located(model: Model, reference: Trace) -> None:
    weights = replace(model.weights, cast_to=FORMATS["bf16"])
    faulty = run(replace(model, weights=weights), {Key(1, "attn_out"): lambda x: x * np.float32(1.01)})
    found = bisect(reference, faulty, weights=model.weights)
    assert accused(found) == {Key(1, "attn_out")}
    assert told(found, FindingType.RECORDING)


# --- a merged LoRA ------------------------------------------------------------------------------------


def merged(*names: str, rank: int, size: float = 0.05) -> Callable[[str, Matrix], Matrix]:
    """Return the addition of a low-rank matrix, of ``size`` of the weight, to the weights so called."""

    def change(name: str, weight: Matrix) -> Matrix:
        if not any(f"{each}_proj" in name for each in names):
            return weight
        values = np.random.default_rng(len(name) + int(weight.size))
        added = values.standard_normal((weight.shape[0], rank)) @ values.standard_normal(
            (rank, weight.shape[1])
        )
        scale = size * np.linalg.norm(weight) / np.linalg.norm(added)
        return (weight + scale * added).astype(np.float32)

    return change


@pytest.mark.parametrize(
    ("names", "rank"), [(("q", "v"), 2), (("q", "k", "v", "o", "gate", "up", "down"), 12)]
)
def test_a_merged_lora_is_told_with_its_rank_and_projections(
    model: Model, reference: Trace, names: tuple[str, ...], rank: int, tmp_path: Path
) -> None:
    adapted = with_weights(model, tmp_path / "adapted", merged(*names, rank=rank))
    found = bisect(reference, run(adapted), weights=model.weights)
    assert found.sources == ()
    (words,) = told(found, FindingType.NOT_THE_SUBJECTS_WEIGHTS)
    assert words.startswith(f"the weights of {', '.join(names)} (layers 0, 1, 2) are the checkpoint's")
    assert f"an addition of rank {rank}, as a merged LoRA" in words


def test_a_fault_beside_a_merged_lora_is_located(model: Model, reference: Trace, tmp_path: Path) -> None:
    adapted = with_weights(model, tmp_path / "adapted", merged("q", "v", rank=3))
    faulty = run(adapted, {Key(1, "attn_softmax"): lambda x: x * np.float32(1.01)})
    found = bisect(reference, faulty, weights=model.weights)
    assert accused(found) == {Key(1, "attn_softmax")}
    assert told(found, FindingType.NOT_THE_SUBJECTS_WEIGHTS)


def two_channels(x: Matrix) -> Matrix:
    """Exchange two input channels of a weight, a difference of rank 2."""
    x = x.copy()
    x[:, [0, 1]] = x[:, [1, 0]]
    return x


@pytest.mark.parametrize("fault", ["two channels", "in one layer", "other weights"])
def test_what_is_no_adapter_is_accused(model: Model, reference: Trace, fault: str, tmp_path: Path) -> None:
    adapter = merged("v", rank=2)
    changes: dict[str, Callable[[str, Matrix], Matrix]] = {
        "two channels": lambda name, x: two_channels(x) if "o_proj" in name else x,
        "in one layer": lambda name, x: adapter(name, x) if "layers.1." in name else x,
        "other weights": lambda name, x: x[::-1] if "v_proj" in name else x,
    }
    faulty = with_weights(model, tmp_path / "faulty", changes[fault])
    found = bisect(reference, run(faulty), weights=model.weights)
    assert told(found, FindingType.NOT_THE_SUBJECTS_WEIGHTS) == []
    assert {name for _, name in accused(found)} == {"attn_out" if fault == "two channels" else "qkv_matmul"}
