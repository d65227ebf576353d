"""What the oracle loads: weights as the file holds them, from safetensors without a copy, from GGUF."""

from __future__ import annotations

import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers

from apr_falsify.errors import LayerRangeError, ModelError
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import family_of
from apr_falsify.oracle.capture import capture, forward, load
from apr_falsify.subjects import embedded
from apr_falsify.traces.capture import MemorySink
from tests.checkpoints import make_checkpoint
from tests.support import DATA
from tests.unit.gguf_models import converted, metadata_of, permuted_by_llama_cpp, write_gguf
from tests.unit.oracle.conftest import OpenCheckpoint
from tests.unit.oracle.requests import request_for

TOKENS = (3, 1, 4, 1, 5, 9, 2, 6)


def hf_logits(config: transformers.PreTrainedConfig, state: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits of a model that transformers builds from ``config`` and ``state``."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    missing, unexpected = model.load_state_dict(
        {name: torch.tensor(values) for name, values in state.items()}, strict=False
    )
    assert not unexpected
    assert all(name == "lm_head.weight" and config.tie_word_embeddings for name in missing)
    with torch.no_grad():
        logits: np.ndarray = model.eval()(torch.tensor([TOKENS]), use_cache=False).logits[0].numpy()
    return logits


def mapped_file(tensor: torch.Tensor) -> str:
    """Return the file in whose memory map the tensor's values lie, or an empty string."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, *_, name = line.split(maxsplit=5) if len(line.split(maxsplit=5)) == 6 else (line.split()[0], "")
        start, stop = (int(part, 16) for part in span.split("-"))
        if start <= tensor.data_ptr() < stop:
            return str(name)
    return ""


@pytest.mark.parametrize(("name", "dtype"), [("f16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_checkpoint_run_in_its_own_format_is_not_copied(
    name: str, dtype: torch.dtype, checkpoint: OpenCheckpoint
) -> None:
    model = checkpoint("llama", dtype)

    own, other = load(model, dtype=name), load(model, dtype="f32")

    path = "model.layers.1.mlp.down_proj"
    assert mapped_file(own.module.get_submodule(path).weight) == str(model.files[0])
    assert mapped_file(other.module.get_submodule(path).weight) != str(model.files[0])


def test_layers_that_do_not_run_need_not_be_in_the_file(tmp_path: Path, checkpoint: OpenCheckpoint) -> None:
    from safetensors.numpy import load_file, save_file

    whole = checkpoint("mistral")
    shutil.copy(whole.path / "config.json", tmp_path)
    tensors = load_file(whole.files[0])
    kept = {name: data for name, data in tensors.items() if ".layers.0." in name or "embed" in name}
    save_file(kept, tmp_path / "model.safetensors")
    request = request_for(whole, layers=range(1))

    part = capture(open_model(tmp_path), request, MemorySink())

    expected = capture(whole, request, MemorySink()).stages
    assert {key: array.data.tobytes() for key, array in part.stages.items()} == {
        key: array.data.tobytes() for key, array in expected.items()
    }


def test_a_missing_weight_is_named(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = make_checkpoint(tmp_path, "llama") / "model.safetensors"
    tensors = load_file(path)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, path)

    with pytest.raises(ModelError, match=r"model\.layers\.1\.mlp\.up_proj\.weight is missing"):
        capture(open_model(tmp_path), request_for(open_model(tmp_path)), MemorySink())


def test_sharded_weights_are_found_in_their_files(tmp_path: Path, checkpoint: OpenCheckpoint) -> None:
    whole = checkpoint("qwen3")
    transformers.AutoModelForCausalLM.from_pretrained(whole.path).save_pretrained(
        tmp_path, max_shard_size="60KB"
    )
    shards = open_model(tmp_path)

    assert len(shards.files) > 1
    assert forward(shards, TOKENS).tobytes() == forward(whole, TOKENS).tobytes()


def test_the_head_needs_all_layers(checkpoint: OpenCheckpoint) -> None:
    with pytest.raises(LayerRangeError, match="2 layers cannot be loaded with the output head"):
        load(checkpoint("llama"), layers=2)


def test_loading_prints_nothing(checkpoint: OpenCheckpoint, capfd: pytest.CaptureFixture[str]) -> None:
    model = checkpoint("qwen2-tied-yarn-window")
    capfd.readouterr()  # transformers says that it wrote the checkpoint

    capture(model, request_for(model), MemorySink())

    assert capfd.readouterr() == ("", "")


def test_loading_leaves_the_progress_bars_of_others_on(checkpoint: OpenCheckpoint) -> None:
    logging = transformers.utils.logging
    logging.enable_progress_bar()

    load(checkpoint("llama"))

    assert logging.is_progress_bar_enabled()


@pytest.mark.parametrize(
    ("knobs", "config"),
    [
        ({"head_dim": 8}, transformers.LlamaConfig),
        ({"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}, transformers.LlamaConfig),
        ({"model_type": "qwen2"}, transformers.Qwen2Config),
        ({"model_type": "qwen3", "head_dim": 8}, transformers.Qwen3Config),
    ],
)
def test_a_gguf_file_runs_as_the_model_it_was_converted_from(
    knobs: dict[str, object], config: type[transformers.PreTrainedConfig], tmp_path: Path
) -> None:
    path, tensors = converted(tmp_path / "model.gguf", **knobs)
    model = open_model(path)
    g = model.geometry
    original = config(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=24,
        vocab_size=32,
        rms_norm_eps=g.norm_eps,
        **{key: value for key, value in knobs.items() if key != "model_type"},
    )

    assert forward(model, TOKENS).tobytes() == hf_logits(original, tensors).tobytes()


def test_rope_freqs_of_a_gguf_file_are_the_llama3_rule(tmp_path: Path, checkpoint: OpenCheckpoint) -> None:
    whole = checkpoint("llama-biased-tied-llama3")
    g, row = whole.geometry, family_of(whole.geometry)
    rotary = load(whole).module.get_submodule("model.rotary_emb")
    plain = g.rope.theta ** -(np.arange(0, g.head_dim, 2) / g.head_dim)
    tensors = {"rope_freqs.weight": (plain / rotary.inv_freq.numpy()).astype(np.float32)}
    for role, name in row.weights.items():
        for layer in range(g.layers) if "{n}" in name else [None]:
            if (stored := whole.weights.tensors.get(name.format(n=layer))) is not None:
                data = np.array(stored.rows(0, stored.shape[0]))
                if role.partition("_")[0] in ("q", "k"):
                    data = permuted_by_llama_cpp(data, g.heads if role[0] == "q" else g.kv_heads)
                tensors[row.gguf_weights[role].format(n=layer)] = np.ascontiguousarray(data)
    model = open_model(write_gguf(tmp_path / "model.gguf", tensors, metadata_of(g)))
    request = request_for(whole, tokens=30)

    assert model.geometry.rope.kind == "divided"
    theirs, ours = (capture(each, request, MemorySink()).stages for each in (whole, model))
    for key in theirs:
        far = np.linalg.norm(theirs[key].data - ours[key].data) / np.linalg.norm(theirs[key].data)
        assert far < 2e-6, key
    part = capture(model, request_for(whole, tokens=30, layers=range(1)), MemorySink()).stages
    assert part[0, "q_post_rope"].data.tobytes() == ours[0, "q_post_rope"].data.tobytes()


@pytest.fixture(scope="module")
def q4k() -> Model:
    return open_model(DATA / "apr-tiny-qwen2" / "base-q4k.gguf")


def test_quantised_weights_are_loaded_dequantised(q4k: Model) -> None:
    names = {ours: theirs for theirs, ours in zip(*_names(q4k), strict=True)}
    state = {
        names[tensor.name]: gguf.quants.dequantize(tensor.data, tensor.tensor_type).reshape(
            [int(size) for size in reversed(tensor.shape)]
        )
        for tensor in gguf.GGUFReader(q4k.path).tensors
    }
    config = transformers.Qwen2Config(
        hidden_size=256,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=2,
        intermediate_size=512,
        vocab_size=512,
        rms_norm_eps=9.999999974752427e-07,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )

    assert forward(q4k, TOKENS).tobytes() == hf_logits(config, state).tobytes()


def _names(model: Model) -> tuple[list[str], list[str]]:
    row, layers = family_of(model.geometry), range(model.geometry.layers)
    pairs = [(row.weights[role], row.gguf_weights[role]) for role in row.weights]
    spread = [(a.format(n=n), b.format(n=n)) for a, b in pairs for n in (layers if "{n}" in a else [None])]
    kept = [pair for pair in spread if pair[1] in model.weights.tensors]
    return [a for a, _ in kept], [b for _, b in kept]


def test_every_stage_of_a_quantised_file_agrees_with_the_embedded_runtime(q4k: Model) -> None:
    request = request_for(q4k)
    oracle = capture(q4k, request, MemorySink(), dtype="f64").stages
    subject = embedded.capture(q4k, request, MemorySink(), dtype="f64").stages

    assert set(oracle) == set(subject)
    for key, array in oracle.items():
        far = np.linalg.norm(array.data - subject[key].data) / np.linalg.norm(array.data)
        assert far < 1e-6, key
