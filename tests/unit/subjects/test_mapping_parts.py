"""What a mapping says beyond names and axes: names by layer, slices, axes in one, copies of kv heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from apr_falsify.compare.layout import canonical
from apr_falsify.errors import AprFalsifyError
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import Trace
from tests.unit.subjects.dumps import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    TOKENS,
    Arrays,
    apr_trace,
    dump_of,
    plain_mapping,
    target,
    write,
)

S, GROUPS = len(TOKENS), HEADS // KV_HEADS


def parts_of(joined: Any) -> list[Any]:
    q, kv = HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM
    return [joined[:, :q], joined[:, q : q + kv], joined[:, q + kv :]]


def fused_feed_forward(arrays: Arrays, stages: dict[str, Any], step: bool) -> None:
    for layer in range(LAYERS):
        gate, up = arrays.pop(f"L{layer}.ffn_gate"), arrays.pop(f"L{layer}.ffn_up")
        turns = np.stack([gate, up], axis=2).reshape(S, -1)
        arrays[f"L{layer}.gu"] = turns if step else np.concatenate([gate, up], axis=1)
    width = gate.shape[1]
    for at, name in enumerate(("ffn_gate", "ffn_up")):
        cut = [at, 2 * width, 2] if step else [at * width, (at + 1) * width]
        stages[name] = {"from": "L{layer}.gu", "axes": ["tokens", "ffn"], "take": {"ffn": cut}}


def by_kv_head(arrays: Arrays, stages: dict[str, Any]) -> None:
    """Lay q, k and v of each kv head side by side."""
    for layer in range(LAYERS):
        split = [x.reshape(S, KV_HEADS, -1, HEAD_DIM) for x in parts_of(arrays.pop(f"L{layer}.qkv_bias"))]
        arrays[f"L{layer}.qkv"] = np.concatenate(split, axis=2).reshape(S, -1)
    within = [["groups", [0, GROUPS]], ["1", [GROUPS, GROUPS + 1]], ["1", [GROUPS + 1, GROUPS + 2]]]
    stages["qkv_bias"] = {
        "from": ["L{layer}.qkv"] * 3,
        "axes": [["tokens", ["kv_heads", word, "head_dim"]] for word, _ in within],
        "take": [{word: cut} for word, cut in within],
    }


def repeated(arrays: Arrays, stages: dict[str, Any]) -> None:
    for layer in range(LAYERS):
        k = arrays[f"L{layer}.k_post_rope"].reshape(S, KV_HEADS, HEAD_DIM)
        arrays[f"L{layer}.k_post_rope"] = np.repeat(k, GROUPS, axis=1).reshape(S, -1)
    stages["k_post_rope"]["axes"] = ["tokens", ["kv_heads", "repeats", "head_dim"]]


def named_by_layer(arrays: Arrays, stages: dict[str, Any]) -> None:
    for stage, names in (("attn_norm", ("silu", "silu_1", "silu_7")), ("ffn_out", ("a", "b", "c"))):
        for layer, name in enumerate(names):
            arrays[name] = arrays.pop(f"L{layer}.{stage}")
        stages[stage] = {"from": dict(enumerate(names))}


CHANGES = {
    "halves": lambda arrays, stages: fused_feed_forward(arrays, stages, step=False),
    "turns": lambda arrays, stages: fused_feed_forward(arrays, stages, step=True),
    "by-kv-head": by_kv_head,
    "repeated": repeated,
    "by-layer": named_by_layer,
}


@pytest.fixture(scope="module")
def run() -> Trace:
    return apr_trace()


@pytest.mark.parametrize("form", ["npz", "safetensors"])
@pytest.mark.parametrize("what", CHANGES)
def test_a_recording_stored_so_reads_as_it_was(what: str, form: str, run: Trace, tmp_path: Path) -> None:
    arrays, said = dump_of(run), plain_mapping(run)
    CHANGES[what](arrays, said["stages"])
    trace = open_recorded(target(write(tmp_path, arrays, said, form))).trace
    assert trace.stages.keys() == run.stages.keys()
    for key, array in trace.stages.items():
        own = canonical(run.stages[key], key, run.geometry, S)
        np.testing.assert_array_equal(canonical(array, key, run.geometry, S), own, str(key))


def test_a_layer_whose_name_is_not_listed_is_not_read(run: Trace, tmp_path: Path) -> None:
    arrays, said = dump_of(run), plain_mapping(run)
    said["stages"]["ffn_up"] = {"from": {0: "L0.ffn_up", 2: "L2.ffn_up"}}
    trace = open_recorded(target(write(tmp_path, arrays, said))).trace
    assert [layer for layer, name in trace.stages if name == "ffn_up"] == [0, 2]


def test_lists_that_pyyaml_writes_once_are_read(run: Trace, tmp_path: Path) -> None:
    said = plain_mapping(run)
    axes = ["tokens", "hidden"]
    said["stages"]["attn_norm"]["axes"] = said["stages"]["ffn_norm"]["axes"] = axes
    text = yaml.safe_dump(said, sort_keys=False)
    assert "*id001" in text
    trace = open_recorded(target(write(tmp_path, dump_of(run), text))).trace
    assert trace.stages.keys() == run.stages.keys()


REFUSED = {
    "copies-differ": ("k_post_rope", {"axes": ["tokens", ["kv_heads", "repeats", "head_dim"]]}, "copies"),
    "no-such-axis": ("ffn_up", {"axes": ["tokens", "ffn"], "take": {"hidden": [0, 1]}}, "no axis"),
    "beyond": ("ffn_up", {"axes": ["tokens", "ffn"], "take": {"ffn": [0, 100000]}}, "is not"),
    "empty": ("ffn_up", {"axes": ["tokens", "ffn"], "take": {"ffn": [5, 5]}}, "take.ffn"),
    "without-axes": ("ffn_up", {"take": {"ffn": [0, 5]}}, "without"),
    "no-layer": ("ffn_up", {"from": {-1: "L0.ffn_up"}}, "layer -1"),
    "twice": ("ffn_up", {"from": {0: "L0.ffn_up", 1: "L0.ffn_up"}}, "twice"),
    "of-another": ("ffn_up", {"from": {0: "L0.ffn_gate"}}, "ffn_gate"),
    "does-not-divide": ("attn_norm", {"axes": ["tokens", ["kv_heads", "repeats", "head_dim"]]}, "attn_norm"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_meant_is_refused(what: str, run: Trace, tmp_path: Path) -> None:
    stage, more, expected = REFUSED[what]
    arrays, said = dump_of(run), plain_mapping(run)
    said["stages"][stage] |= more
    if what == "copies-differ":
        repeated(arrays, said["stages"])
        arrays["L1.k_post_rope"][2, 5] += 1
    with pytest.raises(AprFalsifyError, match=expected):
        open_recorded(target(write(tmp_path, arrays, said)))


def test_an_alias_within_itself_and_one_that_explodes_are_refused(run: Trace, tmp_path: Path) -> None:
    text = yaml.safe_dump(plain_mapping(run), sort_keys=False)
    with pytest.raises(AprFalsifyError, match="alias"):
        open_recorded(target(write(tmp_path / "a", dump_of(run), f"{text}x: &a [*a]\n")))
    grown = "x0: &x0 [1,2,3,4,5,6,7,8,9]\n" + "".join(
        f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 9)}]\n" for n in range(1, 8)
    )
    with pytest.raises(AprFalsifyError, match="more than"):
        open_recorded(target(write(tmp_path / "b", dump_of(run), text + grown)))
