"""Recordings in formats and orders of axes that nobody foresaw, against the same run as apr wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.compare.layout import canonical
from apr_falsify.errors import TokensError, TraceError
from apr_falsify.model.stages import Key, Layout
from apr_falsify.subjects.recorded import open_recorded
from apr_falsify.traces.trace import Trace
from tests.unit.subjects.dumps import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LAYERS,
    TOKENS,
    apr_trace,
    dump_of,
    plain_mapping,
    target,
    write,
)

Array = npt.NDArray[Any]
S = len(TOKENS)


@pytest.fixture(scope="module")
def apr() -> Trace:
    return apr_trace()


def assert_same(found: Trace, expected: Trace) -> None:
    assert found.stages.keys() == expected.stages.keys()
    for key, array in found.stages.items():
        ours, theirs = (canonical(each, key, expected.geometry, S) for each in (array, expected.stages[key]))
        np.testing.assert_array_equal(ours, theirs, err_msg=str(key))


@pytest.mark.parametrize("form", ["npz", "safetensors", "npy"])
def test_every_form_of_file_gives_the_run_that_was_recorded(apr: Trace, tmp_path: Path, form: str) -> None:
    path = write(tmp_path, dump_of(apr), plain_mapping(apr), form)
    subject = open_recorded(target(path))
    assert_same(subject.trace, apr)
    assert (subject.trace.tokens, subject.trace.tokens_verified) == (TOKENS, True)
    assert (subject.trace.provenance.runtime, subject.trace.provenance.unused) == ("other", ())


def heads_first(x: Array) -> Array:
    return x.reshape(S, -1, HEAD_DIM).transpose(1, 0, 2)


def interleaved(x: Array) -> Array:
    """Within each head: channel i and i + D/2 become neighbours."""
    return x.reshape(S, -1, 2, HEAD_DIM // 2).swapaxes(-1, -2).reshape(S, -1)


def bf16_bits(x: Array) -> Array:
    return (np.ascontiguousarray(x, "<f4").view("<u4") >> 16).astype("<u2")


# Stage, how a program might store it, what the mapping then says.
WAYS: dict[str, tuple[str, Callable[[Array], Array], dict[str, Any]]] = {
    "head-major": ("q_post_rope", heads_first, {"axes": ["heads", "tokens", "head_dim"]}),
    "head-major-by-word": ("q_post_rope", heads_first, {"layout": ["head-major"]}),
    "kv-head-major-by-word": ("k_post_rope", heads_first, {"layout": ["head-major"]}),
    "heads-apart": (
        "k_post_rope",
        lambda x: x.reshape(S, KV_HEADS, HEAD_DIM),
        {"axes": ["tokens", "kv_heads", "head_dim"]},
    ),
    "grouped-heads": (
        "q_post_rope",
        lambda x: x.reshape(S, KV_HEADS, HEADS // KV_HEADS, HEAD_DIM).transpose(1, 2, 0, 3),
        {"axes": ["kv_heads", "groups", "tokens", "head_dim"]},
    ),
    "batch-of-one": ("attn_out", lambda x: x[None], {"axes": [1, "tokens", "hidden"]}),
    "channel-major": ("ffn_gate", lambda x: x.T, {"layout": ["transposed"]}),
    "keys-first": ("attn_scores", lambda x: x.transpose(2, 0, 1), {"axes": ["keys", "heads", "tokens"]}),
    "transposed-scores": ("attn_scores", lambda x: x.swapaxes(1, 2), {"layout": ["transposed"]}),
    "padded-keys": (
        "attn_softmax",
        lambda x: np.pad(x, ((0, 0), (0, 0), (0, 250)), constant_values=7),
        {"layout": ["padded-keys"]},
    ),
    "fused-heads": (
        "qkv_bias",
        lambda x: x.reshape(S, HEADS + 2 * KV_HEADS, HEAD_DIM).swapaxes(0, 1),
        {"axes": ["qkv_heads", "tokens", "head_dim"]},
    ),
    "interleaved": ("k_post_rope", interleaved, {"layout": ["interleaved"]}),
    "f64": ("ffn_up", lambda x: x.astype("f8"), {"dtype": "f64"}),
    "big-endian": ("ffn_up", lambda x: x.astype(">f4"), {}),
    "column-major": ("ffn_up", np.asfortranarray, {}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_stage_stored_in_another_way_is_read_as_it_was(apr: Trace, tmp_path: Path, way: str) -> None:
    stage, store, entry = WAYS[way]
    arrays, said = dump_of(apr), plain_mapping(apr)
    for layer in range(LAYERS):
        arrays[f"L{layer}.{stage}"] = store(arrays[f"L{layer}.{stage}"])
    causal = list(said["stages"][stage].get("layout", []))
    said["stages"][stage].update(entry)
    if causal:
        said["stages"][stage]["layout"] = [*causal, *entry.get("layout", [])]
    assert_same(open_recorded(target(write(tmp_path, arrays, said))).trace, apr)


def test_scores_stored_before_the_scale_are_read_in_scaled(apr: Trace, tmp_path: Path) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    for layer in range(LAYERS):
        arrays[f"L{layer}.attn_scores"] = arrays[f"L{layer}.attn_scores"] * np.float32(HEAD_DIM**0.5)
    said["stages"]["attn_scores"]["layout"] = ["causal-zeroed", "unscaled"]
    trace = open_recorded(target(write(tmp_path, arrays, said))).trace
    assert set(trace.stages[0, "attn_scores"].layout) == {Layout.CAUSAL_ZEROED, Layout.UNSCALED}
    found = canonical(trace.stages[2, "attn_scores"], Key(2, "attn_scores"), trace.geometry, S)
    np.testing.assert_allclose(found, apr.stages[2, "attn_scores"].data, rtol=1e-6)


@pytest.mark.parametrize("mask", [-np.inf, -65504.0])
def test_scores_stored_with_the_mask_are_read_below_it(apr: Trace, tmp_path: Path, mask: float) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    for layer in range(LAYERS):
        arrays[f"L{layer}.attn_scores"] = np.where(
            np.tri(S, dtype=bool), arrays[f"L{layer}.attn_scores"], mask
        )
    said["stages"]["attn_scores"]["layout"] = ["causal-masked"]
    assert_same(open_recorded(target(write(tmp_path, arrays, said))).trace, apr)


def test_scores_that_are_called_masked_and_are_not_are_refused(apr: Trace, tmp_path: Path) -> None:
    said = plain_mapping(apr)
    said["stages"]["attn_scores"]["layout"] = ["causal-masked"]
    with pytest.raises(TraceError, match=r"'L0\.attn_scores' holds 0 above the diagonal"):
        open_recorded(target(write(tmp_path, dump_of(apr), said)))


def test_q_k_and_v_stored_apart_are_joined(apr: Trace, tmp_path: Path) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    for layer in range(LAYERS):
        fused = arrays.pop(f"L{layer}.qkv_bias")
        q, k, v = np.split(fused, [HEADS * HEAD_DIM, (HEADS + KV_HEADS) * HEAD_DIM], axis=1)
        arrays |= {f"q{layer:02}": heads_first(q), f"k{layer:02}": heads_first(k), f"v{layer:02}": v}
    said["stages"]["qkv_bias"] = {
        "from": ["q{layer:02}", "k{layer:02}", "v{layer:02}"],
        "axes": [["heads", "tokens", "head_dim"], ["kv_heads", "tokens", "head_dim"], ["tokens", "kv"]],
    }
    assert_same(open_recorded(target(write(tmp_path, arrays, said))).trace, apr)


def test_all_layers_in_one_array_are_taken_apart(apr: Trace, tmp_path: Path) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    arrays["all"] = np.stack([arrays.pop(f"L{layer}.attn_norm") for layer in range(LAYERS)], axis=1)
    said["stages"]["attn_norm"] = {"from": "all", "axes": ["tokens", "layers", "hidden"]}
    assert_same(open_recorded(target(write(tmp_path, arrays, said))).trace, apr)


def test_hidden_states_counted_from_the_embedding_are_found(apr: Trace, tmp_path: Path) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    arrays["h.0"] = arrays.pop("L0.embedding")
    for layer in range(LAYERS):
        arrays[f"h.{layer + 1}"] = arrays.pop(f"L{layer}.post_ffn_residual")
    said["stages"]["embedding"] = {"from": "h.0"}
    said["stages"]["post_ffn_residual"] = {"from": "h.{layer+1}"}
    assert_same(open_recorded(target(write(tmp_path, arrays, said))).trace, apr)


def test_logits_of_all_tokens_give_those_of_the_last(apr: Trace, tmp_path: Path) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    arrays["lm_head"] = np.stack([np.zeros_like(arrays["lm_head"])] * (S - 1) + [arrays["lm_head"]])
    said["stages"]["lm_head"]["axes"] = ["tokens", "vocab"]
    assert_same(open_recorded(target(write(tmp_path, arrays, said))).trace, apr)


@pytest.mark.parametrize("shape", [(1, 256), (256,)], ids=["row", "vector"])
def test_the_last_tokens_row_alone_is_read_as_such(
    apr: Trace, tmp_path: Path, shape: tuple[int, ...]
) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    arrays["final_norm"] = arrays["final_norm"][-1].reshape(shape)
    said["stages"]["final_norm"] |= {"axes": ["tokens", "hidden"][-len(shape) :], "layout": ["last-token"]}
    array = open_recorded(target(write(tmp_path, arrays, said))).trace.stages[None, "final_norm"]
    assert array.layout == (Layout.LAST_TOKEN,)
    np.testing.assert_array_equal(array.data, apr.stages[None, "final_norm"].data[-1])


@pytest.mark.parametrize("form", ["npz", "npy", "safetensors"])
@pytest.mark.parametrize("said_by", ["stage", "run"])
def test_bf16_as_whole_numbers_is_read_where_that_is_said(
    apr: Trace, tmp_path: Path, form: str, said_by: str
) -> None:
    arrays, said = dump_of(apr), plain_mapping(apr)
    rounded = {name: bf16_bits(values) for name, values in arrays.items()}
    if said_by == "run":
        said["dtype"] = "bf16"
    else:
        for entry in said["stages"].values():
            entry["dtype"] = "bf16"
    trace = open_recorded(target(write(tmp_path, rounded, said, form))).trace
    expected = np.ascontiguousarray(arrays["L1.ffn_up"]).view("<u4") & 0xFFFF0000
    np.testing.assert_array_equal(trace.stages[1, "ffn_up"].data.view("<u4"), expected)


def test_arrays_that_no_stage_uses_are_kept_by_name(apr: Trace, tmp_path: Path) -> None:
    arrays = {**dump_of(apr), "debug/x": np.zeros(3), "time": np.zeros(())}
    trace = open_recorded(target(write(tmp_path, arrays, plain_mapping(apr)))).trace
    assert trace.provenance.unused == ("debug/x", "time")


def test_one_layer_alone_is_read_where_the_mapping_says_which(apr: Trace, tmp_path: Path) -> None:
    said = {**plain_mapping(apr), "layer": 1, "stages": {"attn_norm": {"from": "norm"}}}
    path = write(tmp_path, {"norm": dump_of(apr)["L1.attn_norm"]}, said)
    assert open_recorded(target(path)).trace.stages.keys() == {Key(1, "attn_norm")}


def test_tokens_are_read_from_an_array(apr: Trace, tmp_path: Path) -> None:
    arrays = {**dump_of(apr), "ids": np.array([TOKENS])}
    path = write(tmp_path, arrays, {**plain_mapping(apr), "tokens": "ids"})
    trace = open_recorded(target(path)).trace
    assert (trace.tokens, trace.provenance.unused) == (TOKENS, ())


def without_tokens(said: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in said.items() if key != "tokens"}


def test_tokens_that_nobody_says_are_asked_for_with_the_nearest_ones(apr: Trace, tmp_path: Path) -> None:
    path = write(tmp_path, dump_of(apr), without_tokens(plain_mapping(apr)))
    assert open_recorded(target(path, TOKENS)).trace.tokens == TOKENS
    with pytest.raises(TokensError, match="which tokens") as raised:
        open_recorded(target(path))
    assert ",".join(map(str, TOKENS)) in raised.value.remedy


TOKENS_REFUSED: Mapping[str, tuple[Any, tuple[int, ...] | None, str]] = {
    "said-twice-and-differently": (list(TOKENS), (1, 2), "it ran the tokens"),
    "outside-the-vocabulary": ([1, 512], None, "token 512 is outside"),
    "another-rows": ([*TOKENS[:-1], 34], None, "token 5 is given as 34"),
}


@pytest.mark.parametrize("defect", TOKENS_REFUSED)
def test_wrong_tokens_are_refused(apr: Trace, tmp_path: Path, defect: str) -> None:
    tokens, given, what = TOKENS_REFUSED[defect]
    path = write(tmp_path, dump_of(apr), {**plain_mapping(apr), "tokens": tokens})
    with pytest.raises(TokensError, match=what):
        open_recorded(target(path, given))


def test_a_mapping_elsewhere_is_read_where_the_setting_names_it(apr: Trace, tmp_path: Path) -> None:
    path = write(tmp_path / "a", dump_of(apr), plain_mapping(apr))
    (tmp_path / "a" / "MAPPING.yaml").rename(tmp_path / "port.yaml")
    assert_same(open_recorded(target(path, mapping=str(tmp_path / "port.yaml"))).trace, apr)
    with pytest.raises(TraceError, match=r"no MAPPING\.yaml") as raised:
        open_recorded(target(path))
    assert "--print-mapping" in raised.value.remedy
