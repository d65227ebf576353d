"""Where the exam looks for SmolLM2, the one trained model that it runs on."""

from __future__ import annotations

from pathlib import Path

from apr_falsify.folders import cache_folder

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_path() -> Path:
    """Return where SmolLM2's GGUF file is looked for."""
    return cache_folder() / SMOLLM2_FILE
