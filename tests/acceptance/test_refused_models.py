"""Models that cannot be used: refused by name, before anything is run or written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.acceptance.programs import (
    RECORDINGS,
    TINY,
    altered_model,
    assert_refused,
    edit_json,
    listing,
    program_without,
    run,
)


def without(*names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for name in names:
            (model / name).unlink()

    return change


def pickled(model: Path) -> None:
    (model / "model.safetensors").rename(model / "pytorch_model.bin")


def configured(**values: object) -> Callable[[Path], None]:
    return lambda model: edit_json(model / "config.json", **values)


def truncated(model: Path) -> None:
    os.truncate(model / "model.safetensors", 100_000)


def header_announcing_terabytes(model: Path) -> None:
    (model / "model.safetensors").write_bytes((1 << 42).to_bytes(8, "little") + b"{}")


def tensor_taken_away(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(
        weights.read_bytes().replace(b"layers.0.mlp.up_proj.weight", b"layers.0.mlp.op_proj.weight")
    )


TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")

# Defect -> how it is made, and what the message must say.
DEFECTS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no-config": (without("config.json"), ("no config.json", "expected:", "try:")),
    "no-tokenizer": (without(*TOKENIZER), ("no tokenizer", "tokenizer.json", "--tokens 1,2,3")),
    "no-weights": (without("model.safetensors"), ("safetensors", "expected:")),
    "pickled-weights": (pickled, ("pytorch_model.bin", "pickled", "safetensors")),
    "remote-code": (
        configured(auto_map={"AutoModelForCausalLM": "modeling_x.X"}),
        ("config.json", "auto_map"),
    ),
    "unknown-family": (configured(model_type="mamba2"), ("'mamba2'", "llama, ")),
    "no-family": (configured(model_type=...), ("config.json", "model_type")),
    "config-is-no-json": (lambda model: (model / "config.json").write_text("{"), ("config.json", "JSON")),
    "size-is-missing": (configured(hidden_size=...), ("config.json", "hidden_size")),
    "size-is-no-number": (configured(hidden_size="256"), ("config.json", "hidden_size")),
    "absurd-layers": (configured(num_hidden_layers=10**9), ("config.json", "num_hidden_layers")),
    "absurd-vocabulary": (
        configured(vocab_size=10**12),
        ("config.json", "vocab is 1000000000000", "4194304"),
    ),
    "absurd-width": (configured(intermediate_size=10**12), ("config.json", "intermediate is 1000000000000")),
    "heads-do-not-divide": (configured(num_key_value_heads=3), ("config.json", "3")),
    "truncated-weights": (truncated, ("model.safetensors",)),
    "header-announcing-terabytes": (header_announcing_terabytes, ("model.safetensors", "header")),
    "tensor-missing": (tensor_taken_away, ("model.layers.0.mlp.up_proj.weight", "missing")),
    "other-shape-than-configured": (configured(intermediate_size=500), ("shape", "512", "500")),
}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_model_that_cannot_be_used_is_refused_and_nothing_written(tmp_path: Path, defect: str) -> None:
    change, said = DEFECTS[defect]
    model = altered_model(tmp_path, change)
    before = listing(tmp_path)
    outcome = run("bisect", "--oracle", model, "--out", tmp_path / "deep" / "run")
    assert_refused(outcome, model, *said)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("defect", ["tensor-missing", "other-shape-than-configured"])
def test_an_oracle_that_fails_late_leaves_no_subject_behind(tmp_path: Path, defect: str) -> None:
    model = altered_model(tmp_path, DEFECTS[defect][0])
    before = listing(tmp_path)
    out = ("--out", tmp_path / "run")
    recorded = ("--subject", f"recorded:{RECORDINGS / 'base'}", "--tokens", "274,272,332,13,20,33")
    assert run("bisect", "--oracle", model, *recorded, *out).code == 2
    assert run("bisect", "--oracle", TINY, "--subject", f"embedded:{model}", *out).code == 2
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", ["README.md", "model.safetensors", "weights.bin"])
def test_a_file_that_is_no_gguf_is_refused(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_bytes(b"not a model at all")
    assert_refused(run("bisect", "--oracle", file), file, "GGUF")


def test_a_truncated_gguf_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "cut.gguf"
    file.write_bytes((RECORDINGS / "base-q4k.gguf").read_bytes()[:50_000])
    assert_refused(run("bisect", "--oracle", file, "--tokens", "1,2"), file)


def test_a_model_that_is_not_there_is_refused(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    assert_refused(run("bisect", "--oracle", missing), missing, "expected:")
    assert_refused(run("bisect", "--subject", f"embedded:{missing}"), missing, "expected:")
    assert_refused(run("capture", "oracle", missing, "--out", tmp_path / "t"), missing)
    assert listing(tmp_path) == {}


def test_a_hub_id_without_a_network_is_refused_with_the_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    outcome = run("bisect", "--oracle", "nobody/no-such-model")
    assert_refused(outcome, "nobody/no-such-model", "cannot be reached", "--local-dir")


@pytest.mark.parametrize("command", ["bisect", "capture"])
@pytest.mark.parametrize("tokens", [(), ("--tokens", "1,2,3")])
def test_without_torch_the_oracle_names_the_command_that_installs_it(
    tmp_path: Path, command: str, tokens: tuple[str, ...]
) -> None:
    verb = ("bisect",) if command == "bisect" else ("capture", "oracle", TINY)
    outcome = program_without("torch,transformers", *verb, *tokens, "--out", tmp_path / "t")
    assert_refused(outcome, "pip install 'apr-falsify[oracle]'")
    assert listing(tmp_path) == {}


def test_without_torch_the_embedded_runtime_still_captures(tmp_path: Path) -> None:
    command = ("capture", f"embedded:{TINY}", "--tokens", "1,2,3", "--out", tmp_path / "t")
    outcome = program_without("torch,transformers", *command)
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("18 stages of 3 tokens")


def test_cuda_that_is_not_there_is_refused_and_never_replaced(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch is the independent implementation here")
    if torch.cuda.is_available():
        assert run("bisect", "--device", "cuda").code in (0, 1)
        return
    outcome = run("bisect", "--device", "cuda", "--out", tmp_path / "run")
    assert_refused(outcome, "CUDA is not available", "--device cpu")
    assert listing(tmp_path) == {}


def test_the_models_that_are_refused_here_are_one_change_away_from_a_good_one(tmp_path: Path) -> None:
    model = altered_model(tmp_path, lambda _: None)
    assert run("bisect", "--oracle", model).code == 0
    assert json.loads((model / "config.json").read_text())["model_type"] == "qwen2"
