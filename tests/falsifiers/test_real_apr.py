"""What the contracts say of the real ``apr``, measured on it: one test for each thing that it shows.

What they say of our own code is measured beside that code; the markers are the same.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from apr_falsify.compare.axes import Axes
from apr_falsify.compare.metrics import compare_arrays
from apr_falsify.formats.aprt import read_aprt
from apr_falsify.model.stages import APR_STAGES, ATTENTION_SUBSTAGES
from tests.falsifiers.real_apr import Apr, contents, stages_it_knows, values

pytestmark = pytest.mark.real_apr

TOKENS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 6, 256, 8, 2, 32
SIZES = {
    "qkv_bias": TOKENS * (HEADS + 2 * KV_HEADS) * HEAD_DIM,
    "q_post_rope": TOKENS * HEADS * HEAD_DIM,
    "k_post_rope": TOKENS * KV_HEADS * HEAD_DIM,
    "attn_scores": HEADS * TOKENS * TOKENS,
    "attn_softmax": HEADS * TOKENS * TOKENS,
    "attention": TOKENS * HEADS * HEAD_DIM,
    "attn_out": TOKENS * HIDDEN,
}
"""Stages in the order in which a forward pass makes them -> how many values each has."""


@pytest.mark.falsify_attn_sub_001
@pytest.mark.falsify_ffn_sub_001
def test_the_list_of_stages_that_it_prints_is_our_table_in_our_order(apr: Apr) -> None:
    said = apr.run("trace", "--payload", str(apr.model), "--save-tensor", "attn_softmaxx")
    assert said.returncode == 5
    assert stages_it_knows(said.stderr + said.stdout) == list(APR_STAGES)


@pytest.mark.falsify_attn_sub_001
def test_it_takes_a_list_of_the_substages_in_any_case_and_with_blanks(apr: Apr) -> None:
    folder = apr.trace("listed", " ATTN_scores , attn_softmax ", "0..1")
    assert set(contents(folder)) == {"layer-0/attn_scores.bin", "layer-0/attn_softmax.bin"}


@pytest.mark.falsify_attn_sub_002
def test_it_writes_the_seven_stages_of_the_chain_in_the_order_of_a_forward_pass(captured: Path) -> None:
    written = sorted((captured / "layer-0").glob("*.bin"), key=lambda path: path.stat().st_mtime_ns)
    assert [path.stem for path in written if path.stem in SIZES] == list(SIZES)


@pytest.mark.falsify_attn_sub_002
def test_each_stage_that_it_writes_has_the_size_of_its_shape(captured: Path) -> None:
    files = contents(captured)
    assert {name: values(files[f"layer-0/{name}.bin"]).size for name in SIZES} == SIZES


@pytest.mark.falsify_attn_sub_002
def test_the_softmax_that_it_writes_is_that_of_the_scores_that_it_writes(captured: Path) -> None:
    files = contents(captured)
    shape = (HEADS, TOKENS, TOKENS)
    scores = values(files["layer-0/attn_scores.bin"]).reshape(shape).astype(np.float64)
    weights = values(files["layer-0/attn_softmax.bin"]).reshape(shape)
    masked = np.where(np.tri(TOKENS, dtype=bool), scores, -np.inf)
    expected = np.exp(masked - masked.max(-1, keepdims=True))
    np.testing.assert_allclose(weights, expected / expected.sum(-1, keepdims=True), atol=1e-6)


@pytest.mark.falsify_attn_sub_003
@pytest.mark.falsify_save_tensor_006
@pytest.mark.parametrize("stage", ATTENTION_SUBSTAGES)
def test_its_diff_of_a_stage_of_two_layers_gives_our_figures(stage: str, apr: Apr, captured: Path) -> None:
    # Layers differ in the header, which apr refuses; so the second is written again as layer 0.
    first, second = (captured / f"layer-{layer}" / f"{stage}.bin" for layer in (0, 1))
    moved = apr.folder / f"{stage}-of-layer-1.bin"
    moved.write_bytes(second.read_bytes()[:4] + bytes(4) + second.read_bytes()[8:])
    done = apr.run("diff", "--values", str(first), str(moved), "--json")
    assert done.returncode == 0, done.stderr
    theirs = json.loads(done.stdout)
    ours = compare_arrays(read_aprt(first).values, read_aprt(moved).values, Axes(names=("value",)))
    assert -1 <= theirs["cosine_sim"] <= 1
    assert ours.cosine == pytest.approx(theirs["cosine_sim"], abs=1e-6)
    assert ours.max_abs == pytest.approx(theirs["max_abs_diff"], rel=1e-6)
    assert ours.difference_norm / math.sqrt(ours.elements) == pytest.approx(theirs["rms_diff"], rel=1e-6)


@pytest.mark.falsify_attn_sub_005
def test_the_logits_it_prints_without_capture_are_those_it_captures(apr: Apr, captured: Path) -> None:
    said = apr.traced_without_capture()
    logits = values(contents(captured)["lm_head.bin"])
    printed = [(int(one), float(two)) for one, two in re.findall(r"token_id=(\d+), logit=(-?[\d.]+)", said)]
    best = np.argsort(-logits)[: len(printed)]
    assert len(printed) == 5
    assert [token for token, _ in printed] == best.tolist()
    np.testing.assert_allclose([value for _, value in printed], logits[best], atol=5.1e-5)
    norm = re.search(r"LM_HEAD output:.*?L2 norm: ([\d.]+)", said, re.DOTALL)
    assert norm
    assert float(norm[1]) == pytest.approx(float(np.linalg.norm(logits.astype(np.float64))), abs=5.1e-5)


@pytest.mark.falsify_attn_sub_005
def test_it_runs_the_same_tokens_with_and_without_capture(apr: Apr) -> None:
    without = re.search(r"Encoded tokens: (\[.*\])", apr.traced_without_capture())
    done = apr.run("trace", "--payload", str(apr.model), "--save-tensor", "all", "--save-tensor-dir", "ids")
    captured = re.search(r"Token ids:\s*(\[.*?\])", done.stdout)
    assert without
    assert captured
    assert json.loads(without[1]) == json.loads(captured[1])


@pytest.mark.falsify_attn_sub_005
def test_the_logits_do_not_depend_on_which_stages_are_captured(apr: Apr, captured: Path) -> None:
    alone = contents(apr.trace("logits-alone", "lm_head", "0..3"))
    assert alone == {"lm_head.bin": contents(captured)["lm_head.bin"]}


@pytest.mark.falsify_attn_sub_005
@pytest.mark.falsify_save_tensor_002
def test_two_runs_of_it_write_the_same_bytes(apr: Apr, captured: Path) -> None:
    again = contents(apr.trace("again", "all", "0..3"))
    assert len(again) == 54
    assert again == contents(captured)


@pytest.mark.falsify_save_tensor_001
def test_the_files_that_it_writes_have_the_bytes_of_the_format(captured: Path) -> None:
    for path in sorted(captured.rglob("*.bin")):
        content = path.read_bytes()
        layer = path.parent.name.removeprefix("layer-") if path.parent != captured else str(0xFFFFFFFF)
        assert content[:4] == b"APRT"
        assert int.from_bytes(content[4:8], "little") == int(layer)
        assert len(content) == 12 + 4 * int.from_bytes(content[8:12], "little")


@pytest.mark.falsify_save_tensor_004
def test_it_keeps_the_layers_asked_for_and_no_other(apr: Apr, captured: Path) -> None:
    part = contents(apr.trace("middle", "attn_norm", "1..2"))
    assert part == {"layer-1/attn_norm.bin": contents(captured)["layer-1/attn_norm.bin"]}


@pytest.mark.falsify_save_tensor_004
@pytest.mark.parametrize("layers", ["2..2", "1", "0..x"])
def test_it_refuses_an_empty_or_malformed_range(layers: str, apr: Apr) -> None:
    save = ("--save-tensor", "attn_norm", "--save-tensor-dir", "refused", "--save-tensor-layers", layers)
    assert apr.run("trace", "--payload", str(apr.model), *save).returncode != 0
    assert not list((apr.folder / "refused").rglob("*.bin"))
