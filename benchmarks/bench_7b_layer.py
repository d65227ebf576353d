"""Claim: capturing layer 0 of a model of Qwen2.5-7B's geometry (f16, 7 tokens, all its stages) takes, without
counting imports, <= 3 s and <= 0.7 GiB above the interpreter with its imports; f16 is kept as f16.

The checkpoint is random and holds only what layer 0 needs: 1.6 GB in a temporary folder, removed at the end.
Beside it the plain way (load the whole model, run it whole, keep all hidden states), which needs 15 GB: it is
measured on models of 1 and 2 layers of the same widths with a vocabulary of 2048, and 28 layers are
extrapolated in plain sight: t(28) = t(1) + 27 * (t(2) - t(1)), memory likewise, tables of the real vocabulary
added to the memory alone. Each run is a process of its own; memory is VmHWM above what the process used when
it had run a model of 64 channels. The file's pages count: they are mapped, not copied.

    python benchmarks/bench_7b_layer.py [--rounds 3] [--folder DIR]
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from common import in_own_process, memory, options_of_rounds, peak_since

GIB = 1 << 30
SECONDS, MEMORY, LAYERS, VOCAB = 3.0, 0.7, 28, 152_064
TOKENS = (11, 13, 17, 19, 23, 29, 31)
CONFIG: Mapping[str, Any] = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_size": 3584,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "intermediate_size": 18_944,
    "num_hidden_layers": LAYERS,
    "vocab_size": VOCAB,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 32_768,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "torch_dtype": "float16",
}


def write_checkpoint(folder: Path, layers: int, **changes: Any) -> Path:
    """Write a random f16 checkpoint with the tensors of ``layers`` layers, tables and final norm."""
    from apr_falsify.model.families import family_of
    from apr_falsify.model.geometry import geometry_of_config
    from apr_falsify.model.names import ROLE_AXES
    from apr_falsify.oracle.loading import weight_sites

    config = {**CONFIG, **changes}
    geometry = geometry_of_config(config)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    dims, header, at = geometry.dims(1), {}, 0
    for role, layer in weight_sites(geometry, layers, head=layers == geometry.layers):
        shape = [dims[axis] for axis in ROLE_AXES[role]]
        size = 2 * int(np.prod(shape))
        name = family_of(geometry).weights[role].format(n=layer)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = np.random.default_rng(0).normal(0, 0.02, 1 << 22).astype(np.float16).tobytes()
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for start in range(0, at, len(block)):
            file.write(block[: at - start])
    return folder


def warm() -> int:
    """Do the imports, run a tiny model, and return the memory used then."""
    import torch
    import transformers

    sizes = {"hidden_size": 64, "num_hidden_layers": 1, "intermediate_size": 64, "vocab_size": 64}
    small = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**sizes)).half()
    small(torch.tensor([[1, 2, 3]]))
    return peak_since()


def ours(folder: Path) -> dict[str, float]:
    """Capture layer 0 and return seconds, bytes and what was captured."""
    from apr_falsify.formats.weights import open_model
    from apr_falsify.model.stages import STAGES
    from apr_falsify.oracle.capture import capture
    from apr_falsify.traces.capture import MemorySink, Request

    import apr_falsify.oracle.run  # noqa: F401  # isort: skip

    before, start = warm(), time.perf_counter()
    request = Request(tokens=TOKENS, layers=range(1), stages=tuple(STAGES))
    trace = capture(open_model(folder), request, MemorySink(), dtype="f16")
    taken = time.perf_counter() - start
    return {"seconds": taken, "bytes": memory()["VmHWM"] - before, "stages": len(trace.stages)}


def plain(folder: Path) -> dict[str, float]:
    """Load the whole model with transformers, run it whole, and return seconds and bytes."""
    import torch
    import transformers

    before, start = warm(), time.perf_counter()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float16, attn_implementation="eager"
    )
    with torch.inference_mode():
        model(torch.tensor([TOKENS]), output_hidden_states=True, use_cache=False)
    return {"seconds": time.perf_counter() - start, "bytes": memory()["VmHWM"] - before}


def main() -> None:
    """Measure and print."""
    options = options_of_rounds(__doc__)
    if options.run:
        way, checkpoint = options.run
        print(json.dumps({"ours": ours, "plain": plain}[way](Path(checkpoint))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        layer = write_checkpoint(Path(folder) / "layer-0", 1)
        found = [in_own_process(__file__, "--run", "ours", str(layer)) for _ in range(options.rounds)]
        (layer / "model.safetensors").unlink()
        small = {
            depth: in_own_process(
                __file__,
                "--run",
                "plain",
                str(
                    write_checkpoint(
                        Path(folder) / str(depth), depth, num_hidden_layers=depth, vocab_size=2048
                    )
                ),
            )
            for depth in (1, 2)
        }
    report(found, small)


def report(found: list[dict[str, float]], small: Mapping[int, Mapping[str, float]]) -> None:
    """Print ours against the target and against the plain way, extrapolated."""
    taken = statistics.median(one["seconds"] for one in found)
    used = max(one["bytes"] for one in found)
    print(f"layer 0 of 28, {found[0]['stages']:.0f} stages: {taken:.2f} s (target <= {SECONDS} s),", end=" ")
    print(f"{used / GIB:.2f} GiB (target <= {MEMORY} GiB)")
    for depth, one in small.items():
        print(f"plain way, {depth} layers: {one['seconds']:.2f} s, {one['bytes'] / GIB:.2f} GiB")
    whole = {key: small[1][key] + (LAYERS - 1) * (small[2][key] - small[1][key]) for key in small[1]}
    whole["bytes"] += 2 * 2 * (VOCAB - 2048) * 3584
    print(
        f"plain way, 28 layers, extrapolated: {whole['seconds']:.1f} s, {whole['bytes'] / GIB:.1f} GiB",
        end="",
    )
    print(f" = {whole['seconds'] / taken:.0f} x the time, {whole['bytes'] / used:.0f} x the memory")


if __name__ == "__main__":
    main()
