"""What several unit tests share: scripts in a process of their own, and small models made on the spot."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from apr_falsify.formats.tensors import PlainTensor, Tensor
from apr_falsify.formats.weights import Model, Weights
from apr_falsify.model.families import family_of, shape_of_role
from apr_falsify.model.geometry import geometry_of_config
from apr_falsify.model.shape import Geometry

PACKAGE = Path(__file__).parents[2] / "src" / "apr_falsify"
TINY = PACKAGE / "data" / "tiny-qwen2"
"""The checkpoint that the package carries."""

_PRELUDE = """
import os, resource, signal, sys
def become_nobody():
    if os.getuid() == 0: os.setuid(65534)  # after the imports: the interpreter may lie in /root
"""


def run_script(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``script`` with ``arguments`` in a process of its own; ``become_nobody()`` drops all rights."""
    command = [sys.executable, "-W", "error", "-c", _PRELUDE + script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


def open_to_all(path: Path) -> Path:
    """Let every user enter ``path``, which pytest makes for its owner alone."""
    for folder in [path, *path.parents]:
        if not folder.stat().st_mode & 0o001:
            folder.chmod(0o755)
    return path


CONFIG: Mapping[str, Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 32,
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 128,
}
"""A small config.json; tests change what they are about."""

KNOBS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama-biased": {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "qwen2": {"model_type": "qwen2"},
    "qwen3": {"model_type": "qwen3", "head_dim": 8},
    "mistral": {"model_type": "mistral", "sliding_window": 3},
}
"""What makes CONFIG a model of each family."""


def small_geometry(**knobs: Any) -> Geometry:
    """Return the geometry of CONFIG with ``knobs``."""
    return geometry_of_config({**CONFIG, **knobs})


def roles_of(geometry: Geometry) -> list[tuple[str, int | None]]:
    """Return every (role, layer) of which a model of ``geometry`` has a tensor."""
    absent = {
        *(() if geometry.qkv_bias else ("q_bias", "k_bias", "v_bias")),
        *(() if geometry.output_bias else ("o_bias",)),
        *(() if geometry.mlp_bias else ("gate_bias", "up_bias", "down_bias")),
        *(("lm_head",) if geometry.tied else ()),
    }
    roles = [role for role in family_of(geometry).weights if role not in absent]
    once = ("embed", "final_norm", "lm_head")
    layers = range(geometry.layers)
    return [(role, n) for role in roles for n in ([None] if role in once else layers)]


def random_tensors(geometry: Geometry, seed: int = 0) -> dict[str, npt.NDArray[np.float32]]:
    """Return random weights by their HuggingFace names."""
    rng = np.random.default_rng(seed)
    return {
        family_of(geometry).weights[role].format(n=layer): rng.normal(
            0, 0.5, shape_of_role(role, geometry)
        ).astype(np.float32)
        for role, layer in roles_of(geometry)
    }


def small_model(seed: int = 0, **knobs: Any) -> Model:
    """Return a model in memory with random weights."""
    geometry = small_geometry(**knobs)
    tensors = {
        name: PlainTensor(name=name, type="f32", data=data)
        for name, data in random_tensors(geometry, seed).items()
    }
    weights = Weights(
        geometry=geometry,
        names=family_of(geometry).weights,
        tensors=tensors,
        interleaved=False,
        where=Path("memory"),
    )
    return Model(path=Path("memory"), format="safetensors", geometry=geometry, weights=weights, files=())


def model_directory(directory: Path, **knobs: Any) -> Path:
    """Write CONFIG with ``knobs`` and random weights as a HuggingFace directory."""
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps({**CONFIG, **knobs}))
    save_file(random_tensors(small_geometry(**knobs)), directory / "model.safetensors")
    return directory


def whole(tensor: Tensor) -> npt.NDArray[Any]:
    """Return every row of ``tensor``, decoded."""
    return tensor.rows(0, tensor.shape[0])


def plain(data: npt.NDArray[Any], kind: str = "f32") -> PlainTensor:
    """Return a tensor of plain numbers that holds ``data``; bf16 as its u16 bit patterns."""
    return PlainTensor(name="x", type=kind, data=data)
