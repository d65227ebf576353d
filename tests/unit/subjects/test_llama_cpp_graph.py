"""Reading llama.cpp's graph: recorded whole, in batches, in other versions' words, and wrongly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from apr_falsify.errors import AprFalsifyError, TokensError, TraceError, UsageError
from apr_falsify.model.stages import APR_STAGES, STAGES, Key, Layout
from apr_falsify.numerics.quantise import hadamard
from apr_falsify.subjects.interface import Target
from apr_falsify.subjects.llama_cpp import open_llama_cpp
from apr_falsify.subjects.llama_cpp.graph import stages_of_capture
from apr_falsify.subjects.llama_cpp.nodes import nodes_of
from apr_falsify.subjects.llama_cpp.settings import PARAMETERS, parameters
from apr_falsify.traces.capture import MemorySink, Request
from tests.unit.helpers import model_directory, small_geometry
from tests.unit.subjects.smollm2_recording import RECORDING, TOKENS, Arrays, read, recorded_nodes


@pytest.fixture(scope="module")
def nodes() -> Arrays:
    return recorded_nodes()


def in_batches(nodes: Arrays, *sizes: int) -> Arrays:
    """Return the nodes as an eval callback hands them out where the prompt is run in batches.

    A batch but the last asks for no logits, and past the last layer's attention it has no rows.
    """
    found: dict[str, list[npt.NDArray[Any]]] = {}
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    for start, size in zip(starts, sizes, strict=True):
        for name, values in nodes.items():
            axis = next((at for at, length in enumerate(values.shape) if length == TOKENS), None)
            part = values if axis is None else np.take(values, range(start, start + size), axis=axis)
            if axis is None and start + size < TOKENS:
                part = values[:, :, :0]
            if name.startswith("kq-"):
                part = np.where(np.arange(part.shape[-1]) < start + size, part, 0)  # not in the cache yet
            found.setdefault(name.partition("#")[0], []).append(part)
    return {
        name if index == 0 else f"{name}#{index + 1}": part
        for name, parts in found.items()
        for index, part in enumerate(parts)
    }


@pytest.mark.parametrize("sizes", [(7,), (4, 3), (1,) * 7, (6, 1)], ids=str)
def test_batches_are_put_together_as_if_the_prompt_had_been_run_at_once(
    sizes: tuple[int, ...], nodes: Arrays
) -> None:
    whole, joined = read(nodes), read(in_batches(nodes, *sizes))
    assert joined.keys() == whole.keys()
    for (layer, name), array in whole.items():
        found = joined[Key(layer, name)]
        zeroed = name in ("attn_scores", "attn_softmax") and len(sizes) > 1
        assert (Layout.CAUSAL_ZEROED in found.layout) == zeroed
        expected = np.tril(array.data) if zeroed else array.data
        np.testing.assert_array_equal(found.data, expected, err_msg=name)


def test_a_warm_up_before_the_prompt_is_refused(nodes: Arrays) -> None:
    twice = {**in_batches(nodes, 7)}
    for name in [*nodes]:
        plain = name.partition("#")[0]
        count = sum(other.partition("#")[0] == plain for other in twice)
        twice[f"{plain}#{count + 1}"] = nodes[name]
    with pytest.raises(TraceError, match="was recorded for 14 tokens, and 7 were run"):
        read(twice)


def test_a_node_that_lacks_an_evaluation_is_named(nodes: Arrays) -> None:
    batches = in_batches(nodes, 4, 3)
    del batches["ffn_norm-1#2"]
    with pytest.raises(TraceError, match="recorded 2 times and ffn_norm-1 1 times"):
        read(batches)


def test_a_step_of_q_that_lacks_an_evaluation_is_named(nodes: Arrays) -> None:
    batches = in_batches(nodes, 4, 3)
    del batches["Qcur-0#6"]
    with pytest.raises(TraceError, match="Qcur-0 was recorded 5 times in 2 evaluations"):
        read(batches)


def test_other_tokens_than_were_run_are_refused(nodes: Arrays) -> None:
    with pytest.raises(TraceError, match="was recorded for 7 tokens, and 6 were run"):
        read(nodes, 6)


OTHER_NAMES = {"embd": "inp_embd", "kq_soft_max": "kq_soft_max_ext", "ffn_swiglu": "ffn_gate_par"}


def test_older_names_of_nodes_are_the_same_stages(nodes: Arrays) -> None:
    renamed = {}
    for name, values in nodes.items():
        plain, dash, layer = name.partition("-")
        renamed[f"{OTHER_NAMES.get(plain, plain)}{dash}{layer}"] = values
    assert read(renamed).keys() == read(nodes).keys()


@pytest.mark.parametrize("heads", [(4, 2), (1, 1), (2, 1)], ids=str)
def test_one_token_of_any_number_of_heads_is_told_apart(heads: tuple[int, int]) -> None:
    """[1, 1, 1, width] and [1, 1, heads, head_dim] cannot be told apart by their shapes."""
    geometry = small_geometry(num_attention_heads=heads[0], num_key_value_heads=heads[1], model_type="qwen2")
    arrays = {}
    for letter, count in zip("QKV", (heads[0], heads[1], heads[1]), strict=True):
        width, name = count * geometry.head_dim, f"{letter}cur-0"
        steps = [(1, 1, 1, width)] * 2 + [(1, 1, count, geometry.head_dim)] * (1 if letter == "V" else 2)
        for index, shape in enumerate(steps):
            values = np.full(shape, index, np.float32)
            arrays[name if index == 0 else f"{name}#{index + 1}"] = values
    found = dict(stages_of_capture(arrays, geometry, 1, False, RECORDING))
    assert {name: float(array.data.max()) for (_, name), array in found.items()} == {
        "qkv_matmul": 0,
        "qkv_bias": 1,
        "q_post_rope": 3,
        "k_post_rope": 3,
    }


def test_an_attention_that_a_turned_v_cache_left_turned_is_turned_back(nodes: Arrays) -> None:
    plain = {name: values for name, values in nodes.items() if not name.startswith("kq")}
    plain |= {name: values for name, values in nodes.items() if name.startswith("kqv_out")}
    turned = dict(plain)
    for layer in (0, 1, 29):
        heads = plain[f"kqv_out-{layer}"].reshape(-1, 64) @ hadamard(64)
        turned[f"kqv_out-{layer}"] = heads.astype(np.float32).reshape(1, 1, TOKENS, 576)
    expected, found = read(plain), read(turned)
    for layer in (0, 1, 29):
        key = Key(layer, "attention")
        np.testing.assert_array_equal(expected[key].data, plain[f"kqv_out-{layer}"][0, 0])
        np.testing.assert_allclose(found[key].data, expected[key].data, atol=1e-6)


def test_only_the_nodes_of_what_is_wanted_are_asked_for() -> None:
    assert nodes_of([Key(3, "attn_norm")]) == ["attn_norm-3"]
    assert nodes_of([Key(0, "q_post_rope"), Key(0, "qkv_matmul")]) == ["Qcur-0", "Kcur-0", "Vcur-0"]
    assert nodes_of([Key(None, "lm_head")]) == ["result_output"]
    assert set(APR_STAGES) - {name for name in STAGES if nodes_of([Key(0, name)])} == {
        "moe_router",
        "moe_ffn_out",
        "moe_router_indices",
    }


def opened(path: Path, folder: Path, tokens: tuple[int, ...] | None = (1, 2, 3), **knobs: Any) -> Any:
    from apr_falsify.formats.weights import open_model

    model = open_model(model_directory(folder / "model", **knobs))
    return open_llama_cpp(Target(path=path, model=model, tokens=tokens))


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "not a capture"), (b"PK\x03\x04 cut off", "not a capture"), (b"\x93NUMPY", "not a capture")],
    ids=["empty", "cut-off", "array"],
)
def test_what_is_no_capture_is_refused(content: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=said):
        opened(path, tmp_path)


def test_a_single_array_is_no_capture(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(TraceError, match="a single array"):
        opened(path, tmp_path)


def test_objects_in_a_capture_are_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, **{"attn_norm-0": np.array([{}], dtype=object)})
    with pytest.raises(TraceError, match="not a capture"):
        opened(path, tmp_path)


def test_a_capture_without_a_stage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, **{"something-0": np.zeros((1, 1, 3, 4), np.float32)})
    with pytest.raises(TraceError, match="no node of it is a stage"):
        opened(path, tmp_path)


def test_a_capture_of_other_ids_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, token_ids=np.array([4, 5, 6]))
    with pytest.raises(TokensError, match="not those of the capture"):
        opened(path, tmp_path)


def test_a_family_whose_graph_nobody_looked_at_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, token_ids=np.array([1, 2, 3]))
    with pytest.raises(TraceError, match="graph of Phi-3 is not known here"):
        opened(path, tmp_path, model_type="phi3")


def test_settings_for_a_run_that_is_over_are_refused() -> None:
    with pytest.raises(UsageError, match="settings change nothing"):
        open_llama_cpp(Target(path=RECORDING, options={"threads": "1"}))


def test_a_recording_hands_out_what_was_asked_of_it(tmp_path: Path, nodes: Arrays) -> None:
    path = tmp_path / "graph.npz"
    np.savez(path, token_ids=np.arange(3), embd=np.zeros((1, 1, 3, 16), np.float32))
    trace = opened(path, tmp_path, None).capture(
        Request(tokens=(0, 1, 2), layers=range(1), stages=()), MemorySink()
    )
    assert [*trace.stages] == [Key(0, "embedding")]
    assert trace.tokens == (0, 1, 2)


def test_llama_cpp_is_started_on_the_cpu_in_one_batch_and_without_flash_attention() -> None:
    chosen = parameters({}, 700)
    assert chosen["model"] == {"n_gpu_layers": 0}
    assert chosen["context"] == {
        "n_ctx": 768,
        "n_batch": 768,
        "n_ubatch": 768,
        "flash_attn_type": 0,
        "offload_kqv": False,
        "op_offload": False,
    }


def test_what_the_user_sets_goes_where_it_belongs() -> None:
    options = {"threads": "3", "cache-type-k": "q8_0", "gpu-layers": "5", "rope-freq-base": "5e4"}
    chosen = parameters(options, 7)
    assert chosen["model"]["n_gpu_layers"] == 5
    context = chosen["context"]
    assert (context["n_threads"], context["n_threads_batch"], context["type_k"]) == (3, 3, 8)
    assert (context["rope_freq_base"], context["offload_kqv"]) == (50000.0, True)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("threads", "0"),
        ("threads", "-1"),
        ("threads", "²"),
        ("rope-freq-base", "nan"),
        ("rope-freq-base", "0"),
        ("cache-type-v", "q8_1"),
        ("flash-attn", "yes"),
        ("raw-capture", "graph.zip"),
    ],
)
def test_a_value_that_a_setting_cannot_take_is_refused(name: str, text: str) -> None:
    with pytest.raises((ValueError, KeyError)) as caught:
        PARAMETERS[name].setting.read(text)
    assert not isinstance(caught.value, AprFalsifyError)
