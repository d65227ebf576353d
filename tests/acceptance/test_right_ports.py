"""Ports that are right in a way of their own, from file to exit code: handed ones, and others made here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from apr_falsify.compare.layout import canonical
from apr_falsify.formats.weights import open_model
from apr_falsify.model.stages import Key
from apr_falsify.oracle.capture import capture
from apr_falsify.traces.capture import MemorySink
from apr_falsify.traces.trace import Trace
from tests.acceptance.programs import Outcome, assert_refused, run
from tests.checkpoints import make_checkpoint
from tests.support import REAL_VARIABLE, real_folder
from tests.unit.oracle.requests import request_for

Arrays = dict[str, npt.NDArray[Any]]
Place = tuple[int | None, str]
TOKENS = 12


def bisected(model: Path, recording: Path, folder: Path) -> Outcome:
    out = ("--out", folder / "run", "--format", "json")
    return run("bisect", "--oracle", model, "--subject", f"recorded:{recording}", *out)


def accused(outcome: Outcome) -> set[Place]:
    return {(found["layer"], name) for found in outcome.json["sources"] for name in found["stages"]}


def told(outcome: Outcome) -> list[str]:
    """What is told to be held otherwise than is said, in words."""
    return [found["explanation"] for found in outcome.json["findings"] if found["type"] == "recording"]


# --- what was handed to us --------------------------------------------------------------------------

HANDED = {
    "field/scale-folded-into-q": ("model", "folded-q.npz", "good.npz"),
    "field/f16-as-f32": ("model", "good.npz", "f32.npz"),
    "field/decode-right": ("model", "good.npz", "whole.npz"),
    "field/decode-position-zero": ("model", "decode-zero.npz", "whole.npz"),
    "runtimes/transformers-compile-qwen2": ("../models/qwen2", "t.npz", None),
    "runtimes/transformers-bf16ofF32-qwen2": ("../models/qwen2", "t.npz", None),
}
"""Case -> the model, the port's recording, its plain twin's."""


@pytest.mark.skipif(real_folder() is None, reason=f"{REAL_VARIABLE} names no folder")
@pytest.mark.parametrize("case", HANDED)
def test_a_handed_port_is_accused_of_what_is_wrong_with_it_alone(case: str, tmp_path: Path) -> None:
    real = real_folder()
    assert real is not None
    folder = real / case
    model, recording, twin = HANDED[case]
    expected = folder / "expected.json"
    truth = json.loads(expected.read_text())["truth"] if expected.exists() else []
    found = bisected(folder / model, folder / recording, tmp_path)
    assert accused(found) == {Key(layer, name) for layer, name in truth}
    kinds = ("several", "localised") if truth else ("consistent",)  # one cause in every layer is localised
    assert found.json["kind"] in kinds
    assert found.code == (1 if truth else 0)
    assert told(found)
    if twin is not None:
        plain = bisected(folder / model, folder / twin, tmp_path / "twin")
        assert (plain.json["kind"], plain.code, plain.json["findings"]) == ("consistent", 0, [])


# --- others, written as a port might ----------------------------------------------------------------


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("llama") / "model", "llama")


def run_of(checkpoint: Path, dtype: str = "f32") -> Trace:
    """Transformers' own run."""
    model = open_model(checkpoint)
    return capture(model, request_for(model, tokens=TOKENS), MemorySink(), dtype=dtype)


def written(folder: Path, trace: Trace, change: Callable[[Arrays, Trace], object], **said: Any) -> Path:
    """Write a run as a port's recording of f32 arrays, after ``change``, and its mapping."""
    arrays = {
        key[1] if key[0] is None else f"L{key[0]}.{key[1]}": np.array(
            canonical(array, key, trace.geometry, len(trace.tokens)), np.float32
        )
        for key, array in trace.stages.items()
    }
    stages: dict[str, Any] = {
        name: {"from": name if layer is None else f"L{{layer}}.{name}"} for layer, name in trace.stages
    }
    change(arrays, trace)
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "port.npz", ids=np.asarray(trace.tokens), **arrays)
    for name, words in said.pop("layout", {}).items():
        stages[name]["layout"] = words
    mapping = {"schema": "apr-falsify/mapping/v1", "runtime": "port", "dtype": "f32", "tokens": "ids"}
    (folder / "MAPPING.yaml").write_text(yaml.safe_dump({**mapping, "stages": stages, **said}))
    return folder / "port.npz"


def as_it_is(arrays: Arrays, trace: Trace) -> None:
    """Change nothing."""


def fold(arrays: Arrays, trace: Trace) -> None:
    for name in arrays:
        if name.endswith("q_post_rope"):
            arrays[name] *= np.float32(trace.geometry.head_dim**-0.5)


def cached(value: float) -> Callable[[Arrays, Trace], None]:
    """Leave ``value`` where keys were not there yet: a prompt, then three tokens alone."""

    def change(arrays: Arrays, trace: Trace) -> None:
        prompt = TOKENS - 3
        for name in arrays:
            if name.endswith("attn_scores"):
                arrays[name][:, :prompt, prompt:] = value
                arrays[name][:, prompt:][:, np.triu(np.ones((3, TOKENS), dtype=bool), prompt + 1)] = value

    return change


def some_garbage(arrays: Arrays, trace: Trace) -> None:
    for name in arrays:
        if name.endswith("attn_scores"):
            arrays[name][:, 3, 4:] = 1e3


RIGHT: Mapping[str, tuple[str, Callable[[Arrays, Trace], object], str]] = {
    "scale in q": ("f32", fold, "`layout: [scaled]`"),
    "zeros of a cache": ("f32", cached(0.0), "`layout: [visible-only]`"),
    "nan of a cache": ("f32", cached(np.nan), "`layout: [visible-only]`"),
    "-inf of a cache": ("f32", cached(-np.inf), "`layout: [visible-only]`"),
    "garbage in some rows": ("f32", some_garbage, "`layout: [visible-only]`"),
    "f16 saved as f32": ("f16", as_it_is, "`dtype: f16`"),
    "bf16 saved as f32": ("bf16", as_it_is, "`dtype: bf16`"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_port_is_consistent_and_told_what_its_mapping_should_say(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    dtype, change, says = RIGHT[name]
    found = bisected(checkpoint, written(tmp_path, run_of(checkpoint, dtype), change), tmp_path)
    assert (found.json["kind"], found.code) == ("consistent", 0)
    assert any(says in one["try"] for one in found.json["findings"] if one["type"] == "recording")


SAID: Mapping[str, Mapping[str, Any]] = {
    "scale in q": {"layout": {"q_post_rope": ["scaled"]}},
    "zeros of a cache": {"layout": {"attn_scores": ["visible-only"]}},
    "nan of a cache": {"layout": {"attn_scores": ["visible-only"]}},
    "garbage in some rows": {"layout": {"attn_scores": ["visible-only"]}},
    "f16 saved as f32": {"dtype": "f16"},
    "bf16 saved as f32": {"dtype": "bf16"},
}


@pytest.mark.parametrize("name", SAID)
def test_a_mapping_that_says_it_leaves_nothing_to_tell_but_of_weights(
    name: str, checkpoint: Path, tmp_path: Path
) -> None:
    dtype, change, _ = RIGHT[name]
    recording = written(tmp_path, run_of(checkpoint, dtype), change, **SAID[name])
    found = bisected(checkpoint, recording, tmp_path)
    assert (found.json["kind"], found.code) == ("consistent", 0)
    assert [words for words in told(found) if not words.startswith("the weights are rounded to")] == []


@pytest.mark.parametrize("name", RIGHT)
def test_the_same_port_with_a_fault_is_located(name: str, checkpoint: Path, tmp_path: Path) -> None:
    dtype, change, _ = RIGHT[name]

    def faulty(arrays: Arrays, trace: Trace) -> None:
        change(arrays, trace)
        arrays["L1.ffn_silu"] *= np.float32(1.25)
        arrays["lm_head"] *= np.float32(1.25)

    found = bisected(checkpoint, written(tmp_path, run_of(checkpoint, dtype), faulty), tmp_path)
    # ffn_swigl was computed from the sound silu.
    assert accused(found) == {Key(1, "ffn_silu"), Key(1, "ffn_swigl"), Key(None, "lm_head")}


# --- bad input --------------------------------------------------------------------------------------


def alike(checkpoint: Path, target: Path) -> Path:
    """Return a checkpoint whose layers 1 and 2 are equal, and add nothing to the hidden state."""
    target.mkdir(parents=True)
    (target / "config.json").write_text((checkpoint / "config.json").read_text())
    (file,) = checkpoint.glob("*.safetensors")
    tensors = load_file(file)
    for name in tensors:
        tensors[name] = tensors[name.replace("layers.2.", "layers.1.")]
        if ("layers.1." in name or "layers.2." in name) and ("o_proj" in name or "down_proj" in name):
            tensors[name] = np.zeros_like(tensors[name])
    save_file(tensors, target / file.name)
    return target


def test_of_two_equal_layers_the_wrong_one_is_located(checkpoint: Path, tmp_path: Path) -> None:
    model = alike(checkpoint, tmp_path / "model")
    trace = run_of(model)
    np.testing.assert_array_equal(trace.stages[1, "ffn_up"].data, trace.stages[2, "ffn_up"].data)
    right = bisected(model, written(tmp_path / "right", trace, fold), tmp_path)
    assert (right.json["kind"], right.code) == ("consistent", 0)

    def wrong_in_2(arrays: Arrays, _: Trace) -> None:
        fold(arrays, trace)
        arrays["L2.ffn_up"] *= np.float32(1.01)

    wrong = bisected(model, written(tmp_path / "wrong", trace, wrong_in_2), tmp_path / "wrong")
    assert accused(wrong) == {Key(2, "ffn_up"), Key(2, "ffn_swigl")}


@pytest.mark.parametrize("ids", ["once", "in each row"])
def test_a_batch_of_identical_prompts_is_refused_with_what_to_save(
    ids: str, checkpoint: Path, tmp_path: Path
) -> None:
    def twice(arrays: Arrays, trace: Trace) -> None:
        for name, values in arrays.items():
            arrays[name] = np.stack([values, values])

    recording = written(tmp_path, run_of(checkpoint), twice)
    if ids == "in each row":
        arrays = dict(np.load(recording))
        np.savez(recording, **{**arrays, "ids": np.stack([arrays["ids"]] * 2)})
        assert_refused(run("bisect", "--oracle", checkpoint, "--subject", f"recorded:{recording}"), "'ids'")
        return
    refused = run("bisect", "--oracle", checkpoint, "--subject", f"recorded:{recording}")
    assert_refused(refused, "it looks like a batch of 2: let `row: N` say which row")
