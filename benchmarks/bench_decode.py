"""Claim: a decode of 64 steps of SmolLM2's shape (30 layers, random weights), compared with its prefill in
all layers, takes <= 2 times what the prefill's own comparison takes, and no more memory than that and 10 %.

Each comparison is `apr-falsify bisect` of a runtime with itself in a process of its own: the runtime computes
all tokens at once as the oracle, and as the subject at once again, or the last 64 of them one by one. Pairs
alternate; the ratio is the median of theirs. Memory is the process's highest (VmHWM).

    python benchmarks/bench_decode.py [--runtime transformers] [--layers 30] [--tokens 128] [--pairs 3]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import in_own_process, memory

TIME, MEMORY = 2.0, 1.10
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 4096,  # of 49,152: the head computes one token, the embedding is looked up
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 2048,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "dtype": "float16",
}


def write_model(folder: Path, layers: int) -> None:
    """Write a checkpoint of that shape with random weights in f16."""
    from safetensors.numpy import save_file

    from apr_falsify.formats.weights import family_of, shape_of_role
    from apr_falsify.model.families import roles_at
    from apr_falsify.model.geometry import geometry_of_config

    config = {**CONFIG, "num_hidden_layers": layers}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    geometry, rng = geometry_of_config(config), np.random.default_rng(0)
    held = {}
    for layer in (None, *range(layers)):
        for role in roles_at(geometry, layer):
            if role == "lm_head":  # tied
                continue
            shape = shape_of_role(role, geometry)
            values = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
            values = 1 + values / 4 if len(shape) == 1 else values
            held[family_of(geometry).weights[role].format(n=layer)] = values.astype(np.float16)
    save_file(held, folder / "model.safetensors")


def compare(model: str, runtime: str, layers: int, tokens: int, steps: int) -> dict[str, float]:
    """Compare a runtime's prefill with itself, or with a decode of so many steps."""
    from apr_falsify.commands.main import main

    ids = np.random.default_rng(1).integers(5, CONFIG["vocab_size"], tokens)
    side = f"{runtime}:{model}"
    arguments = [
        "bisect",
        "--oracle",
        side,
        "--subject",
        side,
        "--layers",
        f"0..{layers}",
        "--format",
        "json",
    ]
    arguments += ["--tokens", ",".join(map(str, ids)), *(["--decode", str(steps)] if steps else [])]
    sys.argv = ["apr-falsify", *arguments]
    start = time.perf_counter()
    code: int | str | None = None
    try:
        main()
    except SystemExit as ended:
        code = ended.code
    return {"seconds": time.perf_counter() - start, "peak": memory()["VmHWM"], "code": float(code or 0)}


def measured(model: Path, options: argparse.Namespace, steps: int) -> dict[str, float]:
    """Return what a comparison in a process of its own took."""
    words = ("--runtime", options.runtime, "--layers", str(options.layers), "--tokens", str(options.tokens))
    found: dict[str, float] = in_own_process(__file__, "--one", str(model), *words, "--steps", str(steps))
    if found["code"]:
        sys.exit(f"the comparison ended with {found['code']:g}: it is not consistent")
    return found


def main() -> int:
    """Measure, print, and return whether the claim holds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runtime", default="transformers")
    parser.add_argument("--one", help="measure one comparison of this model")
    for name, default in (("--layers", 30), ("--tokens", 128), ("--steps", 64), ("--pairs", 3)):
        parser.add_argument(name, type=int, default=default)
    options = parser.parse_args()
    if options.one:
        found = compare(options.one, options.runtime, options.layers, options.tokens, options.steps)
        print("\n" + json.dumps(found))
        return 0
    with tempfile.TemporaryDirectory() as place:
        model = Path(place) / "model"
        write_model(model, options.layers)
        pairs = [
            (measured(model, options, 0), measured(model, options, options.steps))
            for _ in range(options.pairs)
        ]
    times = [decode["seconds"] / prefill["seconds"] for prefill, decode in pairs]
    peaks = [decode["peak"] / prefill["peak"] for prefill, decode in pairs]
    ratio, peak = statistics.median(times), statistics.median(peaks)
    print(f"prefill of {options.tokens} tokens: {min(one['seconds'] for one, _ in pairs):.1f} s")
    print(f"decode of {options.steps} of them: {min(one['seconds'] for _, one in pairs):.1f} s")
    print(f"time x {ratio:.2f} (<= {TIME:g}), memory x {peak:.2f} (<= {MEMORY:g})")
    return 0 if ratio <= TIME and peak <= MEMORY else 1


if __name__ == "__main__":
    sys.exit(main())
