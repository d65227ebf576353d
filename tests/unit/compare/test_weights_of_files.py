"""Which tensors of the subject's file are not the oracle's, and where that is said to come from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.bisection import Finding, FindingType
from apr_falsify.compare.weights import weights_findings
from apr_falsify.formats.tensors import PlainTensor
from apr_falsify.formats.weights import Weights
from apr_falsify.model.families import family_of
from apr_falsify.model.names import ROLES
from tests.unit.helpers import random_tensors, roles_of, small_geometry

Values = dict[str, npt.NDArray[np.float32]]
Change = Callable[[Values], object]
GEOMETRY = small_geometry(attention_bias=True, mlp_bias=True)
NAMES = family_of(GEOMETRY).weights
DOWN = NAMES["down"].format(n=1)


def file_of(
    name: str, change: Change = lambda values: None, kinds: Mapping[str, str] | None = None, **more: Any
) -> Weights:
    """Return the weights of a file called ``name``: the oracle's, but for what is changed."""
    values = random_tensors(GEOMETRY)
    change(values)
    tensors = {
        key: PlainTensor(name=key, type=(kinds or {}).get(key, "f32"), data=data)
        for key, data in values.items()
    }
    return Weights(
        geometry=GEOMETRY, names=NAMES, tensors=tensors, interleaved=False, where=Path(name), **more
    )


ORACLE = file_of("hf")


def found(subject: Weights, oracle: Weights = ORACLE, layers: tuple[int, ...] = (0, 1)) -> list[Finding]:
    findings = weights_findings(oracle, subject, layers)
    assert {finding.type for finding in findings} <= {FindingType.WEIGHTS}
    return findings


def scaled(name: str, factor: float = 1.5) -> Change:
    def change(values: Values) -> None:
        values[name] = values[name] * np.float32(factor)

    return change


def test_equal_weights_have_no_finding() -> None:
    assert found(file_of("subject")) == []


@pytest.mark.parametrize(("role", "layer"), roles_of(GEOMETRY))
def test_every_tensor_is_compared_and_named_by_the_stage_that_uses_it(role: str, layer: int | None) -> None:
    (finding,) = found(file_of("subject", scaled(NAMES[role].format(n=layer))))
    place = role if layer is None else f"{role} of layer {layer}"
    assert finding.explanation.startswith(f"the subject's {place} (f32) is not the oracle's (f32): ")
    assert finding.stages == (ROLES[role].stage,)
    assert finding.layer == (0 if role == "embed" else layer)
    assert finding.size == pytest.approx(0.5, rel=1e-6)


def test_layers_that_were_not_chosen_are_not_compared_but_whole_model_tensors_are() -> None:
    assert found(file_of("subject", scaled(DOWN)), layers=(0,)) == []
    assert len(found(file_of("subject", scaled(DOWN)), layers=(1,))) == 1
    assert len(found(file_of("subject", scaled(NAMES["lm_head"])), layers=())) == 1


def test_blocks_and_rows_are_counted_in_words() -> None:
    def change(values: Values) -> None:
        values[DOWN][3, 5] += 1
        values[DOWN][9, 20] += 1

    (finding,) = found(file_of("subject", change))
    assert finding.explanation.endswith(
        f"2 of 16 blocks in 2 of 16 rows differ by more than f32 costs, relative L2 {finding.size:.1e}"
    )
    assert finding.advice == "look at how the subject's file was converted"


def test_where_every_block_of_a_plain_file_differs_it_may_come_from_a_quantised_one() -> None:
    (finding,) = found(file_of("subject", scaled(DOWN)))
    assert "if it was imported from a quantised file, name that one" in finding.advice
    (finding,) = found(file_of("subject", scaled(DOWN), {DOWN: "q4_0"}))
    assert finding.advice == "look at how the subject's file was converted"


def test_a_tensor_that_one_side_lacks_is_infinitely_far_off() -> None:
    without = file_of("subject", lambda values: values.pop(NAMES["k_bias"].format(n=0)))
    (finding,) = found(without)
    assert (finding.explanation, finding.layer) == ("the subject has no tensor k_bias of layer 0", 0)
    assert (finding.size, finding.stages) == (math.inf, ("qkv_bias",))
    (finding,) = found(ORACLE, oracle=without)
    assert finding.explanation == "the oracle has no tensor k_bias of layer 0"
    assert found(without, oracle=without) == []


def test_a_role_that_one_sides_file_has_no_name_for_is_passed_over() -> None:
    names = {role: name for role, name in NAMES.items() if role != "k_bias"}
    assert found(replace(ORACLE, names=names, where=Path("subject"))) == []


def test_another_shape_is_said_with_both() -> None:
    def change(values: Values) -> None:
        values[DOWN] = values[DOWN].T.copy()

    (finding,) = found(file_of("subject", change))
    assert finding.explanation == (
        "the subject's down of layer 1 has the shape [24, 16], the oracle's [16, 24]"
    )
    assert finding.size == math.inf


# --- a file that the runtime imported into its own format ---------------------------------------------------


def imported(
    source: Weights, change: Change = lambda values: None, kinds: Mapping[str, str] | None = None
) -> Weights:
    return file_of("model.apr", change, kinds, imported_from=source)


def test_an_import_that_left_the_oracles_own_file_as_it_was_needs_no_comparison() -> None:
    assert found(imported(file_of("hf"))) == []
    wrong = file_of("hf", scaled(DOWN))  # the same file: the oracle itself runs with it
    assert found(imported(wrong, scaled(DOWN)), oracle=file_of("hf", scaled(DOWN))) == []


def test_a_file_that_is_wrong_and_was_imported_as_it_is_is_named() -> None:
    source = file_of("model.gguf", scaled(DOWN), {DOWN: "q4_0"})
    (finding,) = found(imported(source, scaled(DOWN)))
    assert finding.explanation.startswith("model.gguf's down of layer 1 (q4_0) is not the oracle's (f32): ")
    assert finding.explanation.endswith("; its import left it as it was")
    assert finding.advice == "look at how the subject's file was converted"


def test_what_quantising_a_file_cost_is_allowed_where_its_import_widened_it() -> None:
    """The file is q8_0, the runtime holds in f32 what it stands for: a step is no difference."""
    step = float(np.abs(random_tensors(GEOMETRY)[DOWN]).max()) / 127

    def rounded(values: Values) -> None:
        values[DOWN] = values[DOWN] + np.float32(step / 2)

    source = file_of("model.gguf", rounded, {DOWN: "q8_0"})
    assert found(imported(source, rounded)) == []
    assert len(found(file_of("model.apr", rounded))) == 1


def test_an_import_that_changed_a_tensor_of_the_oracles_own_file_is_named() -> None:
    (finding,) = found(imported(file_of("hf"), scaled(DOWN)))
    assert finding.explanation.startswith("the subject's down of layer 1 (f32) is not the oracle's (f32): ")
    assert finding.explanation.endswith("; the import of hf changed it")
    assert finding.advice == "look at how the runtime imports the subject's file"


def test_an_import_into_another_format_is_compared_with_the_file_that_it_read() -> None:
    source = file_of("hf", kinds={DOWN: "f16"})
    (finding,) = found(imported(source, scaled(DOWN), {DOWN: "q4_0"}))
    assert finding.explanation.startswith("the subject's down of layer 1 (q4_0) is not hf's (f16): ")
    assert finding.explanation.endswith("; the import of hf changed it")


def test_a_foreign_file_that_is_wrong_and_was_imported_wrongly_has_both_findings() -> None:
    source = file_of("model.gguf", scaled(DOWN), {DOWN: "q4_0"})
    first, second = found(imported(source, scaled(DOWN, 5.0), {DOWN: "q5_0"}))
    assert first.explanation.startswith("model.gguf's down of layer 1 (q4_0) is not the oracle's (f32): ")
    assert "changed it" not in first.explanation
    assert second.explanation.startswith("the subject's down of layer 1 (q5_0) is not model.gguf's (q4_0): ")
    assert second.explanation.endswith("; the import of model.gguf changed it")


def test_a_tensor_that_an_import_lost_is_named() -> None:
    source = file_of("hf")
    (finding,) = found(imported(source, lambda values: values.pop(DOWN)))
    assert finding.explanation == "the subject has no tensor down of layer 1; the import of hf changed it"


def test_a_tensor_that_the_imported_file_does_not_have_is_compared_with_the_oracles() -> None:
    source = file_of("hf", lambda values: values.pop(DOWN))
    (finding,) = found(imported(source, scaled(DOWN)))
    assert finding.explanation.startswith("the subject's down of layer 1 (f32) is not the oracle's (f32): ")
    assert "import" not in finding.explanation


def test_an_import_that_kept_nan_as_it_was_left_the_file_as_it_was() -> None:
    def spoilt(values: Values) -> None:
        values[DOWN][2, 2] = np.nan

    source = file_of("model.gguf", spoilt)
    (finding,) = found(imported(source, spoilt))
    assert finding.explanation.endswith("; its import left it as it was")
