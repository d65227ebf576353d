"""Every reader that is fuzzed, and its share of a campaign."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.fuzz.readers import (
    bundles,
    documents,
    models,
    proposals,
    quantised,
    recordings,
    stages,
    tokenizers,
)
from tests.fuzz.readers.inputs import Maker


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One reader.

    Attributes:
        prepare: makes what changes its sound files, in an empty folder.
        share: its part of all inputs, in thousandths.

    """

    prepare: Callable[[Path], Maker]
    share: int


READERS: Mapping[str, Row] = {
    "aprt": Row(prepare=stages.aprt, share=120),
    "trace": Row(prepare=stages.trace, share=80),
    "apr-recording": Row(prepare=stages.apr_recording, share=20),
    "gguf": Row(prepare=models.gguf, share=90),
    "gguf-tokenizer": Row(prepare=tokenizers.gguf_tokenizer, share=20),
    "apr": Row(prepare=models.apr, share=80),
    "safetensors": Row(prepare=models.safetensors, share=70),
    "quantised": Row(prepare=quantised.checkpoint, share=40),
    "config": Row(prepare=models.config, share=130),
    "npz": Row(prepare=recordings.npz, share=50),
    "npy": Row(prepare=recordings.npy, share=50),
    "recorded-safetensors": Row(prepare=recordings.safetensors, share=40),
    "mapping": Row(prepare=recordings.mapping, share=40),
    "own-weights": Row(prepare=quantised.own_weights, share=30),
    "print-mapping": Row(prepare=proposals.proposal, share=4),
    "llama-cpp": Row(prepare=recordings.llama_cpp, share=40),
    "contract": Row(prepare=documents.contract, share=40),
    "roadmap": Row(prepare=documents.roadmap, share=20),
    "settings": Row(prepare=documents.settings, share=30),
    "baseline": Row(prepare=documents.baseline, share=40),
    "bundle": Row(prepare=bundles.folder, share=20),
    "bundle-zip": Row(prepare=bundles.archive, share=20),
    "bisection": Row(prepare=bundles.bisection, share=10),
    "statement": Row(prepare=bundles.statement, share=40),
}
"""Name -> reader. Cheap ones get more: an input of ``bisection`` costs what a thousand of ``aprt`` do."""
