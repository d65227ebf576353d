"""A model whose activations one chooses, and whose weights pick one each: ``apr``'s integers can be read.

Every matrix has one weight a row, so that a product's output is integer * scale of one channel. What ``apr``
multiplies is chosen through the embeddings (a first channel as large as the others together are small makes
the norm a product with a power of two), through the norms' weights, and through the bias of v: with keys that
are zero the first token's ``attention`` is that bias.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from apr_falsify.formats.aprt import read_aprt
from apr_falsify.numerics import quantise
from tests.edge_values import SIZE, rows_of
from tests.support import DATA
from tests.unit.apr_files import apr, made
from tests.unit.gguf_models import write_gguf

F32 = npt.NDArray[np.float32]

TOKENIZER = DATA / "apr-tiny-qwen2" / "base-q4k.gguf"
TOKENS = (274, 272, 332, 13, 20, 33)
HIDDEN, HEADS = 4 * SIZE, 8
_POWER = 20
"""Embeddings are 2**_POWER times what the norm gives, and its weights as much."""

PRODUCTS: Mapping[str, str] = {
    "attn_norm": "qkv_matmul",
    "attention": "attn_out",
    "ffn_norm": "ffn_gate",
    "ffn_swigl": "ffn_out",
}
"""Stage -> the product that it is multiplied in; of ``qkv_matmul`` q is looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """What ``apr`` multiplied, f32 [6, 1024], and integer * scale of each, as its output holds them."""

    stage: str
    layer: int
    inputs: F32
    outputs: F32

    @property
    def differing(self) -> int:
        """How many outputs are not what our blocks of 256 give, to the bit."""
        steps = quantise.STEPS[quantise.q8_256](self.inputs)
        with np.errstate(invalid="ignore", over="ignore"):
            ours = steps.quants.astype(np.float32) * steps.scale.astype(np.float32)
        return int(np.count_nonzero((ours != self.outputs) & ~(np.isnan(ours) & np.isnan(self.outputs))))


def edge_embeddings(seed: int) -> F32:
    """Return what the first norm is to give, [6, 1024]: all but the first block lie on edges."""
    rows = rows_of("edges of 255 levels", 6 * 3, seed)
    rows /= np.exp2(np.floor(np.log2(np.abs(rows).max(axis=-1, keepdims=True))))
    return np.concatenate([np.zeros((6, SIZE), np.float32), rows.reshape(6, -1)], axis=-1)


def write_probe(path: Path, embeddings: F32, biases: F32, seed: int = 0) -> Path:
    """Write a GGUF file of one layer for each of ``biases`` [layers, 1024], in Q4_K.

    ``embeddings`` [6, 1024] is what the first norm gives for the six tokens of the prompt; later norms have
    random weights.
    """
    table = np.ones((512, HIDDEN), np.float32)
    table[list(TOKENS)] = embeddings * np.float32(2.0**_POWER)
    table[:, 0] = 2.0 ** (
        2 * _POWER + 5
    )  # its square is the sum of all: sqrt(mean) is 2**(2 * _POWER) exactly
    picking, none = picking_weights(np.arange(HIDDEN)), picking_weights(np.full(HIDDEN, -1))
    inner = picking_weights(np.where(np.arange(HIDDEN) < SIZE, -1, np.arange(HIDDEN)))
    tensors: dict[str, npt.NDArray[Any]] = {
        "token_embd.weight": table,
        "output_norm.weight": np.ones(HIDDEN, np.float32),
        "output.weight": inner[SIZE : SIZE + 512],
    }
    matrices = {"attn_q": inner, "attn_k": none, "attn_v": none, "attn_output": picking}
    matrices |= {"ffn_gate": inner, "ffn_up": inner, "ffn_down": picking}
    rng = np.random.default_rng(seed)
    for layer, bias in enumerate(biases):
        names = {f"blk.{layer}.{name}.weight": values for name, values in matrices.items()}
        norms = {name: np.exp2(_POWER + rng.uniform(-1, 1, HIDDEN)) for name in ("attn_norm", "ffn_norm")}
        if layer == 0:
            norms["attn_norm"][:] = 2.0**_POWER
        names |= {f"blk.{layer}.{name}.weight": values.astype(np.float32) for name, values in norms.items()}
        names |= {f"blk.{layer}.attn_{name}.bias": np.zeros(HIDDEN, np.float32) for name in "qk"}
        tensors |= {**names, f"blk.{layer}.attn_v.bias": np.asarray(bias, np.float32)}
    kinds = {name: "Q4_K" for name, values in tensors.items() if values.dtype == np.uint8}
    return write_gguf(path, tensors, _metadata(len(biases)), kinds, architecture="qwen2")


def picking_weights(columns: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.uint8]:
    """Return a Q4_K matrix of 1024 columns: each row has a 1 in the given one, none where that is -1."""
    blocks = np.zeros((len(columns), HIDDEN // SIZE, 144), np.uint8)
    for row, column in enumerate(columns):
        if column < 0:
            continue
        block, (part, at) = blocks[row, column // SIZE], divmod(column % SIZE, 32)
        block[0:2] = np.array([1], np.float16).view(np.uint8)  # the scale d of the block of 256
        block[4 + part if part < 4 else 8 + part] = 1  # the 6-bit scale of its part of 32, others 0
        block[16 + 32 * (part // 2) + at] = 1 if part % 2 == 0 else 16  # a nibble
    return blocks.reshape(len(columns), -1)


def _metadata(layers: int) -> dict[str, Any]:
    fields = gguf.GGUFReader(TOKENIZER).fields
    found = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.ggml.")}
    sizes = {
        "block_count": layers,
        "context_length": 512,
        "embedding_length": HIDDEN,
        "feed_forward_length": HIDDEN,
        "attention.head_count": HEADS,
        "attention.head_count_kv": HEADS,
        "attention.layer_norm_rms_epsilon": 1e-6,
        "rope.freq_base": 1e6,
    }
    return found | {f"qwen2.{key}": value for key, value in sizes.items()}


def readouts(path: Path, stages: Sequence[str] = tuple(PRODUCTS)) -> Iterator[Readout]:
    """Run the real ``apr`` on a probe and yield what it multiplied and what came out, layer by layer."""
    layers = int(gguf.GGUFReader(path).fields["qwen2.block_count"].contents())
    model, folder = made(path.with_suffix(".apr"), "import", path), path.with_suffix(".stages")
    names = ",".join({name for stage in stages for name in (stage, PRODUCTS[stage])})
    save = ("--save-tensor", names, "--save-tensor-dir", folder, "--save-tensor-layers", f"0..{layers}")
    done = apr("trace", "--payload", model, *save)
    assert done.returncode == 0, done.stderr
    for layer in range(layers):
        for stage in stages:
            inputs, outputs = (
                read_aprt(folder / f"layer-{layer}" / f"{name}.bin").values.reshape(6, -1)[:, :HIDDEN]
                for name in (stage, PRODUCTS[stage])
            )
            used = slice(
                SIZE if stage.endswith("_norm") else 0, None
            )  # the first block holds the large channel
            yield Readout(stage=stage, layer=layer, inputs=inputs[:, used], outputs=outputs[:, used])
    model.unlink()
