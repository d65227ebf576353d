"""Recordings of llama.cpp's graph as strangers make them: in part, in other shapes, of other models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from apr_falsify.errors import TokensError, TraceError
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import Key, Layout
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.llama_cpp.graph import stages_of_capture
from apr_falsify.traces.capture import MemorySink, Request
from apr_falsify.traces.trace import Trace
from tests.unit.helpers import model_directory, small_geometry
from tests.unit.subjects.smollm2_recording import (
    RECORDING,
    TOKENS,
    Arrays,
    read,
    recorded_nodes,
)


@pytest.fixture(scope="module")
def nodes() -> Arrays:
    return recorded_nodes()


def without(nodes: Arrays, *names: str) -> Arrays:
    return {name: values for name, values in nodes.items() if name not in names}


@pytest.mark.parametrize(
    ("node", "shape"),
    [
        ("ffn_up-1", ()),
        ("ffn_up-1", (1, 1, 1536, 7)),
        ("ffn_up-1", (1, 1, 7, 1535)),
        ("embd", (576, 7, 1, 1)),
        ("Qcur-1#3", (1, 9, 7, 64)),
        ("kq-1", ()),
        ("kq-1", (0, 9, 7, 256)),
        ("kq-1", (1, 8, 7, 256)),
        ("kq_soft_max-1", (256, 7, 9, 1)),
    ],
    ids=str,
)
def test_a_node_of_another_shape_is_named_with_its_shape(
    node: str, shape: tuple[int, ...], nodes: Arrays
) -> None:
    with pytest.raises(TraceError) as caught:
        read({**nodes, node: np.zeros(shape, np.float32)})
    assert caught.value.what == f"{node} has the shape {list(shape)}"


@pytest.mark.parametrize("node", ["Qcur-1", "Kcur-1", "Vcur-1"])
def test_projections_of_other_numbers_of_tokens_are_refused(node: str, nodes: Arrays) -> None:
    with pytest.raises(TraceError, match="Vcur-1 were recorded for"):
        read({**nodes, node: nodes[node][..., :1, :]})


def test_a_layer_that_no_number_says_is_no_layer(nodes: Arrays) -> None:
    assert read({**nodes, f"Qcur-{'9' * 5000}": nodes["Qcur-1"]}).keys() == read(nodes).keys()


@pytest.mark.parametrize("value", [np.finfo(np.float32).max, np.inf, np.nan], ids=["largest", "inf", "nan"])
def test_attention_beyond_all_measure_is_not_taken_for_a_turned_one(value: float, nodes: Arrays) -> None:
    """Nor is there a warning, which would be an error here."""
    hidden = without(nodes, "kq-1", "kq_soft_max-1")
    broken = {name: np.full_like(nodes[name], value) for name in ("kqv_out-1", "Vcur-1")}
    found = read({**hidden, **broken})
    np.testing.assert_array_equal(found[1, "attention"].data, broken["kqv_out-1"].reshape(TOKENS, -1))


def test_nodes_without_their_axes_of_one_are_the_same_stages(nodes: Arrays) -> None:
    whole, found = read(nodes), read({name: values.squeeze() for name, values in nodes.items()})
    assert found.keys() == whole.keys()
    for key, array in whole.items():
        assert found[key].data.tobytes() == array.data.tobytes()


def test_of_the_last_occurrences_alone_none_is_taken_for_a_product(nodes: Arrays) -> None:
    """A recorder that keeps one array a name keeps the rotated Qcur and Kcur, and a view of Vcur."""
    found = read({name.partition("#")[0]: values for name, values in nodes.items()})
    assert {Key(0, "qkv_matmul"), Key(0, "q_post_rope")}.isdisjoint(found)
    assert read(nodes).keys() - found.keys() == {
        Key(layer, name) for layer in (0, 1, 29) for name in ("qkv_matmul", "q_post_rope", "k_post_rope")
    }


def test_a_view_is_not_taken_for_the_rotated_heads_that_were_not_recorded(nodes: Arrays) -> None:
    found = read(without(nodes, "Qcur-1#3"))
    assert read(nodes).keys() - found.keys() == {Key(1, "q_post_rope")}


def test_without_views_the_last_occurrence_is_the_rotated_one(nodes: Arrays) -> None:
    views = [name for name in nodes if "cur-" in name and name.endswith("#2")]
    found = read({name.replace("#3", "#2"): values for name, values in without(nodes, *views).items()})
    whole = read(nodes)
    assert found.keys() == whole.keys()
    np.testing.assert_array_equal(found[1, "q_post_rope"].data, whole[1, "q_post_rope"].data)


def test_of_a_bias_and_a_product_that_cannot_be_told_apart_neither_is_taken(nodes: Arrays) -> None:
    geometry = small_geometry(
        model_type="qwen2",
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
    )
    found = dict(stages_of_capture(nodes, geometry, TOKENS, False, RECORDING))
    assert {Key(0, "qkv_matmul"), Key(0, "qkv_bias")}.isdisjoint(found)


def test_the_residual_sum_that_a_control_vector_is_added_to_is_not_ffn_out(nodes: Arrays) -> None:
    """``ffn_out-1`` then occurs twice, and ``l_out-1`` is what comes of the second."""
    found = read({**nodes, "ffn_out-1#2": nodes["l_out-1"] - 1})
    np.testing.assert_array_equal(found[1, "ffn_out"].data, nodes["ffn_out-1"][0, 0])


def test_an_output_with_a_bias_is_the_second_of_two(nodes: Arrays) -> None:
    found = read({**nodes, "attn_out-1#2": nodes["attn_out-1"] + 1})
    np.testing.assert_array_equal(found[1, "attn_out"].data, nodes["attn_out-1"][0, 0] + 1)


def test_a_gate_with_a_bias_is_the_node_behind_the_product(nodes: Arrays) -> None:
    geometry = small_geometry(
        hidden_size=576,
        intermediate_size=1536,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49_152,
        mlp_bias=True,
    )
    summed = {**nodes, "ffn_gate_b-1": nodes["ffn_gate-1"] + 1}
    found = dict(stages_of_capture(summed, geometry, TOKENS, True, RECORDING))
    np.testing.assert_array_equal(found[1, "ffn_gate"].data, nodes["ffn_gate-1"][0, 0] + 1)
    assert {Key(0, "ffn_gate"), Key(0, "ffn_up"), Key(1, "ffn_up")}.isdisjoint(found)


def test_what_was_turned_back_in_blocks_is_the_attention(nodes: Arrays) -> None:
    flat = nodes["kqv_out-1"]
    found = read({**nodes, "kqv_unrotated-1": flat.reshape(1, 1, -1, 64) + 1})
    np.testing.assert_array_equal(found[1, "attention"].data, flat[0, 0] + 1)


def test_scores_of_the_last_query_alone_are_no_stage(nodes: Arrays) -> None:
    alone = {name: nodes[name][:, :, -1:] for name in ("kq-1", "kq_soft_max-1")}
    found = read({**nodes, **alone})
    assert read(nodes).keys() - found.keys() == {Key(1, "attn_scores"), Key(1, "attn_softmax")}


def test_what_the_last_token_has_alone_is_said_to_be_so(nodes: Arrays) -> None:
    found = read({**nodes, "ffn_up-1": nodes["ffn_up-1"][:, :, -1:]})
    assert found[1, "ffn_up"].layout == (Layout.LAST_TOKEN,)


def test_a_run_that_asked_for_no_logits_has_no_end_of_the_last_layer(nodes: Arrays) -> None:
    last = [name for name, values in nodes.items() if values.shape[-2] == 1 and values.ndim == 4]
    found = read({**nodes, **{name: nodes[name][:, :, :0] for name in last}})
    assert Key(29, "attn_out") in found
    assert {Key(29, "ffn_norm"), Key(29, "post_ffn_residual"), Key(None, "lm_head")}.isdisjoint(found)


def opened(path: Path, folder: Path, tokens: tuple[int, ...] | None = None) -> Trace:
    model = open_model(model_directory(folder / "model"))
    subject = open_llama_cpp(Target(path=path, model=model, tokens=tokens))
    request = Request(tokens=tokens or (0,), layers=range(1), stages=())
    return subject.capture(request, MemorySink())


@pytest.mark.parametrize(
    ("ids", "said"),
    [
        ([-1, 2], "token -1 is outside the vocabulary"),
        ([10**6], "token 1000000 is outside the vocabulary"),
        ([], "token_ids is empty"),
        ([1.5], "holds other than whole numbers"),
        ([np.nan], "holds other than whole numbers"),
    ],
    ids=str,
)
def test_token_ids_that_are_none_are_refused(ids: list[float], said: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "graph.npz", token_ids=np.array(ids))
    with pytest.raises(TokensError, match=said):
        opened(tmp_path / "graph.npz", tmp_path)


def test_rows_of_fewer_tokens_than_were_run_verify_nothing(tmp_path: Path) -> None:
    np.savez(tmp_path / "graph.npz", embd=np.ones((1, 1, 1, 16), np.float32))
    trace = opened(tmp_path / "graph.npz", tmp_path, (1, 2, 3))
    assert not trace.tokens_verified


def test_what_was_saved_in_f16_is_known_to_be_rounded(tmp_path: Path) -> None:
    norm = np.full((1, 1, 3, 16), 1 / 3, np.float32)
    nodes = {"attn_norm-0": norm, "ffn_norm-0": norm.astype(np.float16)}
    np.savez(tmp_path / "graph.npz", **nodes)
    trace = opened(tmp_path / "graph.npz", tmp_path, (1, 2, 3))
    assert trace.provenance.saved_as == {"ffn_norm": "f16"}
    assert {array.data.dtype for array in trace.stages.values()} == {np.dtype(np.float32)}


def test_scores_that_flash_attention_hides_are_said_to_be_hidden(tmp_path: Path) -> None:
    mixed = {"kqv_out-0": np.zeros((1, 1, 3, 16), np.float32)}
    np.savez(tmp_path / "flash.npz", **mixed)
    absent = opened(tmp_path / "flash.npz", tmp_path, (1, 2, 3)).provenance.absent
    assert absent.keys() == {"attn_scores", "attn_softmax"}
    assert "flash attention" in absent["attn_scores"]
    np.savez(tmp_path / "plain.npz", **mixed, **{"kq-0": np.zeros((1, 4, 3, 256), np.float32)})
    assert opened(tmp_path / "plain.npz", tmp_path, (1, 2, 3)).provenance.absent == {}
