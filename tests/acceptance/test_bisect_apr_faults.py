"""``bisect --subject apr:`` on a checkpoint of odd geometry made from a seed, with faults of its own."""

from __future__ import annotations

import math
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from safetensors.numpy import load_file, save_file

from apr_falsify.model.stages import Key
from tests.acceptance.programs import TINY, edit_json, run
from tests.unit.compare.wrong_stages import assert_says

APR = shutil.which("apr")
pytestmark = [pytest.mark.real_apr, pytest.mark.skipif(APR is None, reason="no apr binary on PATH")]

Arrays = dict[str, npt.NDArray[np.float32]]
Places = set[tuple[int | None, str]]

LAYERS, HIDDEN, HEADS, HEAD_DIM, FFN, VOCAB = 2, 256, 4, 64, 256, 512
SOUND: dict[str, Any] = {
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 1,
    "layer_types": ["full_attention"] * LAYERS,
    "dtype": "float32",
    "torch_dtype": "float32",
}


@pytest.fixture(autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    monkeypatch.setenv("APR_FALSIFY_CACHE", str(tmp_path_factory.getbasetemp() / "apr-falsify-cache"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Qwen2 checkpoint in f32 with one kv head, two layers and large biases."""
    place = tmp_path_factory.mktemp("checkpoints") / "sound"
    shutil.copytree(TINY, place)
    edit_json(place / "config.json", **SOUND)
    save_file(_tensors(), place / "model.safetensors", metadata={"format": "pt"})
    return place


def _tensors() -> Arrays:
    rng = np.random.default_rng(7)
    shapes = {
        "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
        "self_attn.k_proj": (HEAD_DIM, HIDDEN),
        "self_attn.v_proj": (HEAD_DIM, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
        "mlp.gate_proj": (FFN, HIDDEN),
        "mlp.up_proj": (FFN, HIDDEN),
        "mlp.down_proj": (HIDDEN, FFN),
    }

    def normal(shape: tuple[int, ...], size: float, mean: float = 0.0) -> npt.NDArray[np.float32]:
        return rng.normal(mean, size, shape).astype(np.float32)

    tensors = {
        "model.embed_tokens.weight": normal((VOCAB, HIDDEN), 0.3),
        "model.norm.weight": normal((HIDDEN,), 0.2, 1.0),
        "lm_head.weight": normal((VOCAB, HIDDEN), HIDDEN**-0.5),
    }
    for layer in range(LAYERS):
        for name, shape in shapes.items():
            tensors[f"model.layers.{layer}.{name}.weight"] = normal(shape, shape[1] ** -0.5)
            if name[-6:] in ("q_proj", "k_proj", "v_proj"):
                tensors[f"model.layers.{layer}.{name}.bias"] = normal(shape[:1], 20.0)
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"model.layers.{layer}.{name}.weight"] = normal((HIDDEN,), 0.2, 1.0)
    return tensors


def faulted(sound: Path, place: Path, spoil: Callable[[Arrays], object], **config: object) -> Path:
    """Write ``sound`` to ``place``, its tensors spoilt and its config.json changed."""
    shutil.copytree(sound, place)
    tensors = load_file(place / "model.safetensors")
    spoil(tensors)
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    edit_json(place / "config.json", **config)
    return place


def bisected(oracle: Path, subject: Path, *more: object) -> dict[str, Any]:
    sides = ("--oracle", oracle, "--subject", f"apr:{subject}", "--layers", f"0..{LAYERS}")
    outcome = run("bisect", *sides, "--format", "json", *more)
    assert outcome.code == 1, outcome.err  # apr's tokenizer gives other ids, whatever else is wrong
    return outcome.json


def places(found: dict[str, Any]) -> Places:
    return {(source["layer"], stage) for source in found["sources"] for stage in source["stages"]}


def explained(found: dict[str, Any]) -> str:
    return " ".join(source["explanation"] for source in found["sources"])


def other_config(name: str) -> tuple[dict[str, object], Places]:
    """Return what is wrong in config.json, and where it is used."""
    rope = {"rope_theta": 2e5, "rope_parameters": {"rope_theta": 2e5, "rope_type": "default"}}
    norms: Places = {Key(layer, stage) for layer in range(LAYERS) for stage in ("attn_norm", "ffn_norm")}
    rotated: Places = {
        Key(layer, stage) for layer in range(LAYERS) for stage in ("q_post_rope", "k_post_rope")
    }
    cases: dict[str, tuple[dict[str, object], Places]] = {
        "rope base": (rope, rotated),
        "epsilon": ({"rms_norm_eps": 1e-5}, norms | {Key(None, "final_norm")}),
    }
    return cases[name]


@pytest.mark.parametrize("weights", ["subject", "oracle"])
@pytest.mark.parametrize("name", ["rope base", "epsilon"])
def test_a_constant_of_the_config_is_located_whosever_weights_replay_it(
    sound: Path, tmp_path: Path, name: str, weights: str
) -> None:
    config, truth = other_config(name)
    subject = faulted(sound, tmp_path / "model", lambda tensors: None, **config)
    found = bisected(sound, subject, "--weights", weights)
    assert places(found) == truth
    said = {
        "rope base": "base 1000000 in the oracle's",
        "epsilon": "norm_eps is 1e-06 in the oracle's model, 1e-05",
    }
    assert said[name] in explained(found)


def test_a_window_that_the_run_does_not_fill_is_no_source(sound: Path, tmp_path: Path) -> None:
    sliding = {"layer_types": ["sliding_attention"] * LAYERS, "max_window_layers": 0}
    for window, truth in ((64, set()), (2, {Key(layer, "attn_softmax") for layer in range(LAYERS)})):
        config = {**sliding, "use_sliding_window": True, "sliding_window": window}
        model = faulted(sound, tmp_path / str(window), lambda tensors: None, **config)
        found = bisected(model, model)  # an .apr file has no key for a window
        assert places(found) == truth
        (told,) = (each["explanation"] for each in found["findings"] if each["type"] == "geometry")
        assert told.startswith(f"windows is {window} in every layer in the oracle's model, None")


def _next_layers_k(tensors: Arrays) -> None:
    tensors["model.layers.0.self_attn.k_proj.weight"] = tensors[
        "model.layers.1.self_attn.k_proj.weight"
    ].copy()


def _next_layers_k_bias(tensors: Arrays) -> None:
    tensors["model.layers.0.self_attn.k_proj.bias"] = tensors["model.layers.1.self_attn.k_proj.bias"].copy()


def _barely_scaled(tensors: Arrays) -> None:
    tensors["model.layers.1.mlp.up_proj.weight"] *= np.float32(1.00002)


CAUSES: dict[str, tuple[Callable[[Arrays], None], tuple[int, str], str]] = {
    "all of the lone kv head": (_next_layers_k, Key(0, "qkv_matmul"), "the weights of k of layer 1 fits"),
    "its bias": (_next_layers_k_bias, Key(0, "qkv_bias"), "the biases of k of layer 1 fits"),
    "a factor near one": (_barely_scaled, Key(1, "ffn_up"), "; x <1.00002> "),
}


@pytest.mark.parametrize("name", CAUSES)
def test_a_fault_is_told_by_its_cause_and_not_by_its_place_alone(
    sound: Path, tmp_path: Path, name: str
) -> None:
    spoil, truth, said = CAUSES[name]
    found = bisected(sound, faulted(sound, tmp_path / "model", spoil), "--weights", "oracle")
    assert places(found) == {truth}
    assert_says(explained(found), said, "f32", digits=8)


def quantised(source: Path, place: Path) -> Path:
    """Return ``source`` in Q4_K, as apr quantises and imports it again."""
    assert APR is not None
    steps = (
        ("import", source, "-o", place / "plain.apr"),
        ("quantize", place / "plain.apr", "-s", "q4k", "--format", "gguf", "-o", place / "q4k.gguf"),
        ("import", place / "q4k.gguf", "-o", place / "q4k.apr"),
    )
    for step in steps:
        subprocess.run([APR, *step], check=True, capture_output=True)
    return place / "q4k.apr"


@pytest.mark.parametrize("factor", [1.0, 1.03, 0.9])
def test_a_factor_that_is_smaller_than_a_step_of_q4_k_is_located(
    sound: Path, tmp_path: Path, factor: float
) -> None:
    def scaled(tensors: Arrays) -> None:
        tensors["model.layers.1.mlp.up_proj.weight"] *= np.float32(factor)

    subject = quantised(faulted(sound, tmp_path / "model", scaled), tmp_path)
    found = bisected(sound, subject)
    assert places(found) == (set() if factor == 1 else {Key(1, "ffn_up")})
    if factor != 1:
        assert "up of layer 1 (q4_k) is not the oracle's (f32): all of it is x " in explained(found)


def test_other_weights_are_no_excuse_for_a_norm_or_a_rotation(sound: Path, tmp_path: Path) -> None:
    def scaled(tensors: Arrays) -> None:
        tensors["model.layers.1.input_layernorm.weight"] *= np.float32(1.01)

    config, rotated = other_config("rope base")
    subject = quantised(faulted(sound, tmp_path / "model", scaled, **config), tmp_path)
    found = bisected(sound, subject, "--weights", "oracle")
    assert "not-the-subjects-weights" in {each["type"] for each in found["findings"]}
    assert places(found) == {Key(1, "attn_norm"), *rotated}
    assert "x 1.01 fits" in explained(found)
    assert not found["complete"]


@pytest.mark.parametrize("weights", ["subject", "oracle"])
@pytest.mark.parametrize("value", [1e30, math.nan, -math.inf])
def test_a_row_spoilt_in_the_file_itself_is_the_one_source(
    sound: Path, tmp_path: Path, value: float, weights: str
) -> None:
    """Import refuses such values. The square of 1e30 is beyond f32: norms make zeros of it, rightly."""
    assert APR is not None
    place = tmp_path / "model.apr"
    subprocess.run([APR, "import", sound, "-o", place], check=True, capture_output=True)
    row = load_file(sound / "model.safetensors")["model.layers.0.self_attn.v_proj.weight"][5]
    assert place.read_bytes().count(row.tobytes()) == 1
    place.write_bytes(place.read_bytes().replace(row.tobytes(), np.full_like(row, value).tobytes()))
    assert places(bisected(sound, place, "--weights", weights)) == {Key(0, "qkv_matmul")}


def test_a_sound_checkpoint_of_one_kv_head_is_consistent(sound: Path) -> None:
    found = bisected(sound, sound)
    assert (found["kind"], [each["type"] for each in found["findings"]]) == ("consistent", ["tokenizer"])
    assert max(row["residual"] for row in found["stages"] if row["residual"] is not None) < 1e-6
