"""Measure what the tables of docs/findings/smollm2-apr-0.72.3.md say, and put them into the page.

    python scripts/findings_smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf [WORK]

``apr`` 0.72.3 is on PATH. WORK (2.5 GB, a temporary folder by default) keeps the models; a second run with it
imports nothing anew. Blocks between ``<!-- begin NAME -->`` and ``<!-- end NAME -->`` are written.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers

from apr_falsify.formats.tensors import Tensor
from apr_falsify.formats.weights import Model, open_model
from apr_falsify.model.families import family_of
from apr_falsify.oracle.loading import load_module

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "findings" / "smollm2-apr-0.72.3.md"
RECORDED = ROOT / "tests" / "data" / "apr-smollm2-135m"
TINY = ROOT / "src" / "apr_falsify" / "data" / "tiny-qwen2"
TOKENS = "1780,314,216,34,27,34,47"
PROGRAM = Path(sys.executable).parent / "apr-falsify"
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
Json = Mapping[str, Any]

SIZES: Json = {
    "num_hidden_layers": 2,
    "hidden_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 128,
    "vocab_size": 512,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32}
CASES: Mapping[str, tuple[str, Json]] = {
    "qwen2, as it should be": ("qwen2", {}),
    "qwen2, tied head": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, yarn": ("qwen2", {"rope_parameters": YARN}),
    "qwen2, window 3": ("qwen2", {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 0}),
    "llama": ("llama", {}),
    "llama, head_dim 32": ("llama", {"head_dim": 32}),
    "mistral, window 3": ("mistral", {"head_dim": 24, "sliding_window": 3}),
    "qwen3": ("qwen3", {"head_dim": 24}),
}
"""Small seeded checkpoints in f16, 96 wide with 4 heads: what is said of each differs from ``SIZES``."""


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``apr-falsify``; whatever its exit status."""
    command = [str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def bisection(*arguments: object) -> Json:
    """Return what ``bisect`` prints as JSON, or what it refuses and why."""
    done = run("bisect", *arguments, "--format", "json")
    if done.stdout.startswith("{"):
        result: Json = json.loads(done.stdout)
        return result
    return {"refused": done.stderr.splitlines()[0].replace(shutil.which("apr") or "apr", "apr")}


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table."""
    head = list(head)
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def judged(result: Json) -> dict[str, list[Json]]:
    """Return stage -> its rows in all layers, those that were compared."""
    found: dict[str, list[Json]] = {}
    for row in result["stages"]:
        if row["status"] == "compared":
            found.setdefault(row["stage"], []).append(row)
    return found


def most(rows: list[Json], *keys: str) -> str:
    """Return the largest value of ``keys`` in ``rows``, with the layer it is in."""
    sized = []
    for row in rows:
        value: Any = row
        for key in keys:
            value = value[key]
        sized.append((value, row["layer"]))
    value, layer = max(sized)
    where = f" (layer {layer})" if len(rows) > 1 and value else ""
    return f"{value:.1e}{where}" if value else "0"


def of_gguf(own: Json, oracles: Json) -> str:
    """Return the table of the run that was imported from the GGUF."""
    theirs = judged(oracles)
    rows = [
        (
            f"`{stage}`",
            len(mine),
            most(mine, "introduced", "rel_l2"),
            most(theirs[stage], "introduced", "rel_l2"),
            f"{max(row['excess'] for row in mine):.2f}",
            most(mine, "accumulated", "rel_l2"),
            ", ".join(sorted({row["arithmetic"] for row in mine})),
        )
        for stage, mine in judged(own).items()
    ]
    head = (
        "stage",
        "layers",
        "introduced, own weights",
        "introduced, oracle's weights",
        "in units of f32 rounding",
        "accumulated",
        "arithmetic",
    )
    return f"{headline(own)}; with the oracle's weights: {headline(oracles)}.\n\n{table(head, rows)}"


def headline(result: Json) -> str:
    """Return kind and number of findings."""
    count = len(result["findings"])
    return f"`{result['kind']}`, {count} finding{'s' * (count != 1)}"


def of_checkpoint(result: Json) -> str:
    """Return the table of the run that was imported from a checkpoint."""
    causes: dict[str, Counter[str]] = {}
    for finding in result["sources"]:
        for stage in finding["stages"]:
            said = re.sub(r" \(residual [^)]*\)", "", finding["explanation"].split("; ", 1)[-1])
            causes.setdefault(stage, Counter())[said] += 1
    rows = [
        (
            f"`{stage}`",
            most(mine, "introduced", "rel_l2"),
            most(mine, "accumulated", "rel_l2"),
            f"{sum(row['verdict'] == 'introduces' for row in mine)} of {len(mine)}",
            "<br>".join(f"{said} ({n})" for said, n in causes.get(stage, Counter()).most_common()) or "-",
        )
        for stage, mine in judged(result).items()
    ]
    head = ("stage", "introduced, most", "accumulated, most", "a source in", "explained by")
    return f"{headline(result)}.\n\n{table(head, rows)}"


def agreement(live: Json, recorded: Json, folder: Path) -> str:
    """Say how the live run and the recorded one agree."""
    files = sorted(RECORDED.rglob("*.bin"))
    same = sum((folder / file.relative_to(RECORDED)).read_bytes() == file.read_bytes() for file in files)
    rows = {(row["layer"], row["stage"]): row for row in live["stages"]}
    compared = [row for row in recorded["stages"] if row["status"] == "compared"]
    equal = sum(rows[row["layer"], row["stage"]]["introduced"] == row["introduced"] for row in compared)
    return (
        f"Recorded: {headline(recorded)}; live: {headline(live)}.\n"
        f"{same} of the recording's {len(files)} stage files are byte for byte what the live run wrote;\n"
        f"{equal} of its {len(compared)} introduced errors are the same numbers."
    )


def weights(subject: Model, source: Model) -> str:
    """Say which of the subject's tensors are not those of the file it was imported from."""
    different, compared = [], 0
    for role, name in family_of(source.geometry).weights.items():
        for layer in range(source.geometry.layers) if "{n}" in name else (None,):
            ours, theirs = subject.weights.find(role, layer), source.weights.find(role, layer)
            if ours is None and theirs is None:
                continue
            compared += 1
            if ours is None or theirs is None or not np.array_equal(_values(ours), _values(theirs)):
                different.append(name.format(n=layer))
    held, original = subject.weights.tensors, source.weights.tensors
    types = ", ".join(sorted({tensor.type for tensor in held.values()}))
    return (
        f"The GGUF has {len(original)} tensors, the .apr {len(held)} ({types}).\n"
        f"Added: {', '.join(sorted(set(held) - set(original))) or 'none'}. "
        f"Missing: {', '.join(sorted(set(original) - set(held))) or 'none'}.\n"
        f"Of {compared} weights by role, other values than the GGUF's dequantised: "
        f"{', '.join(different) or 'none'}."
    )


def _values(tensor: Tensor) -> npt.NDArray[Any]:
    return np.asarray(tensor.rows(0, tensor.shape[0]))


def of_cases(work: Path) -> str:
    """Return what is found on each small checkpoint."""
    rows = []
    for number, (title, (family, knobs)) in enumerate(CASES.items()):
        folder = small_checkpoint(work / "cases" / str(number), family, knobs)
        result = bisection("--oracle", folder, "--subject", f"apr:{folder}", "--layers", "0..2")
        rows.append((title, *([result["refused"], ""] if "refused" in result else told(result))))
    return table(("checkpoint", "verdict", "findings"), rows)


def told(result: Json) -> tuple[str, str]:
    """Return kind and findings of one case; those of several layers are told once."""
    said: dict[str, list[int]] = {}
    for finding in result["findings"]:
        words = re.sub(r"layer \d+ |residual \S+, floor \S+; | \(residual \S+\)", "", finding["explanation"])
        said.setdefault(f"{finding['type']}: {words}", []).append(finding["layer"])
    lines = [
        f"{words}" + (f" ({len(layers)} layers)" if layers[0] is not None else "")
        for words, layers in said.items()
    ]
    return f"`{result['kind']}`", "<br>".join(lines) or "none"


def small_checkpoint(folder: Path, family: str, knobs: Json) -> Path:
    """Write a seeded checkpoint in f16 with the tiny model's tokenizer."""
    config = transformers.CONFIG_MAPPING[family](**{**SIZES, **knobs})
    model = transformers.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = torch.randn(weight.shape, generator=generator)
            wide = 2 * weight.shape[-1] ** -0.5 if weight.dim() > 1 else 0.5
            weight.copy_(1 + 0.3 * values if "norm" in name else wide * values)
    model.to(torch.float16).save_pretrained(folder)
    for name in TOKENIZER:
        shutil.copy(TINY / name, folder)
    return folder


def as_checkpoint(gguf: Path, folder: Path) -> Path:
    """Write the GGUF's dequantised weights as a HuggingFace checkpoint in f32, with its tokenizer."""
    if not (folder / "tokenizer.json").exists():
        source = open_model(gguf)
        layers, device = source.geometry.layers, torch.device("cpu")
        module = load_module(source, layers=layers, head=True, dtype=torch.float32, device=device)
        module.save_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer.save_pretrained(folder)
    return folder


def imported(source: Path, target: Path) -> Path:
    """Import ``source`` with apr."""
    if not target.exists():
        subprocess.run(["apr", "import", source, "-o", target], check=True, capture_output=True)
    return target


def blocks(gguf: Path, work: Path) -> dict[str, str]:
    """Return every block of the page by name."""
    from_gguf = imported(gguf, work / "from-gguf.apr")
    shutil.rmtree(work / "run", ignore_errors=True)
    sides = ("--oracle", gguf, "--subject", f"apr:{from_gguf}", "--layers", "0..30")
    own = bisection(*sides, "--weights", "subject", "--out", work / "run")
    oracles = bisection(*sides, "--weights", "oracle")
    recorded = bisection("--oracle", gguf, "--subject", f"recorded:{RECORDED}", "--tokens", TOKENS)
    checkpoint = as_checkpoint(gguf, work / "checkpoint")
    subject = imported(checkpoint, work / "from-checkpoint.apr")
    other = bisection("--oracle", checkpoint, "--subject", f"apr:{subject}", "--layers", "0..30")
    return {
        "weights": weights(open_model(from_gguf), open_model(gguf)),
        "from-gguf": of_gguf(own, oracles),
        "recorded": agreement(own, recorded, work / "run" / "subject"),
        "from-checkpoint": of_checkpoint(other),
        "cases": of_cases(work),
    }


def main() -> None:
    """Rewrite the page."""
    if len(sys.argv) not in (2, 3) or not Path(sys.argv[1]).is_file():
        sys.exit(f"usage: {sys.argv[0]} SmolLM2-135M-Instruct.Q4_1.gguf [WORK]")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(sys.argv[2]) if len(sys.argv) == 3 else Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        found = blocks(Path(sys.argv[1]).resolve(), work.resolve())
    page = PAGE.read_text(encoding="utf-8")
    for name, text in found.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        head, rest = page.split(begin)
        page = f"{head}{begin}\n{text}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
