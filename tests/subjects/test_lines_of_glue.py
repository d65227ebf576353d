"""Programs that people use are recorded with the lines that docs/subjects/recording.md shows, and judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import apr_falsify as af
from tests.acceptance.programs import TINY

IDS = [274, 272, 223, 20, 13, 20, 33]


def of_transformers() -> Any:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    return transformers.AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32).eval()


def of_litgpt() -> Any:
    """The tiny checkpoint in litgpt, its weights converted by litgpt itself."""
    litgpt = pytest.importorskip("litgpt", reason="litgpt is not installed")
    from litgpt.scripts.convert_hf_checkpoint import copy_weights_qwen_2_5
    from safetensors.torch import load_file

    config = litgpt.Config(
        name="tiny",
        block_size=512,
        vocab_size=512,
        padded_vocab_size=512,
        n_layer=3,
        n_head=8,
        n_query_groups=2,
        n_embd=256,
        head_size=32,
        rotary_percentage=1.0,
        parallel_residual=False,
        bias=False,
        attn_bias=True,
        norm_class_name="RMSNorm",
        norm_eps=1e-6,
        mlp_class_name="LLaMAMLP",
        intermediate_size=512,
        rope_base=1_000_000,
    )
    weights: dict[str, torch.Tensor] = {}
    theirs = {name: values.float() for name, values in load_file(TINY / "model.safetensors").items()}
    copy_weights_qwen_2_5(config, {}, weights, theirs)
    model = litgpt.GPT(config)
    model.load_state_dict(weights)
    return model.eval()


PROGRAMS = {"litgpt": of_litgpt, "transformers": of_transformers}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_right_program_is_consistent(program: str, tmp_path: Path) -> None:
    model = PROGRAMS[program]()
    with torch.no_grad(), af.record(tmp_path / "run", model=model, tokens=IDS):
        model(torch.tensor([IDS]))
    result = af.bisect(TINY, f"recorded:{tmp_path / 'run'}")
    assert (result.kind, result.sources) == (af.Kind.CONSISTENT, ())
    judged = [row for row in result.rows if row.accumulated is not None]
    assert len(judged) >= 40
