"""Wrong multipliers and soft-caps, worked out with torch from the file's own tensors."""

from __future__ import annotations

from collections.abc import Callable

import torch

from apr_falsify.model.stages import Key
from tests.unit.compare.family_runs import Run
from tests.unit.compare.solved import EMBEDDED, TOKENS, Tensor, Wrong, wrong

SCORES: Key = Key(1, "attn_scores")
LOGITS: Key = Key(None, "lm_head")
ATTENDED: Key = Key(1, "post_attn_residual")
FED: Key = Key(1, "post_ffn_residual")


def scores(run: Run, scale: float, cap: float | None = None) -> Tensor:
    """q.k of grouped heads by einsum, scaled, and capped where there is a cap."""
    g = run.trace.geometry
    q = run[1, "q_post_rope"].reshape(TOKENS, g.heads, g.head_dim)
    k = run[1, "k_post_rope"].reshape(TOKENS, g.kv_heads, g.head_dim)
    made = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(g.heads // g.kv_heads, 1)) * scale
    return made if cap is None else cap * torch.tanh(made / cap)


def logits(run: Run, scale: float = 1.0, cap: float | None = None, token: int = -1) -> Tensor:
    head = "lm_head.weight" if "lm_head.weight" in run.tensors else "model.embed_tokens.weight"
    made = run[None, "final_norm"][token] @ run.w(head).T * scale
    return made if cap is None else cap * torch.tanh(made / cap)


def added(run: Run, a: float, b: float, key: Key = FED) -> Tensor:
    stream, branch = {
        FED: (Key(1, "post_attn_residual"), Key(1, "ffn_out")),
        ATTENDED: (Key(0, "post_ffn_residual"), Key(1, "attn_out")),
    }[key]
    return a * run[stream] + b * run[branch]


def rows(run: Run, scale: float) -> Tensor:
    """The rows of the embedding table, times ``scale``."""
    return scale * run.w("model.embed_tokens.weight")[torch.tensor(run.trace.tokens)]


def multiplier(recipe: str, key: Key, says: str, make: Callable[[Run], Tensor]) -> Wrong:
    return wrong(recipe, key, "multiplier", f"^{says} fits", make)


def cap(recipe: str, key: Key, says: str, make: Callable[[Run], Tensor]) -> Wrong:
    return wrong(recipe, key, "soft-cap", f"^{says}", make)


GRANITE = "granite"
R = "the residual multiplier"
E = "the embedding multiplier"
A = "the attention multiplier"

MULTIPLIERS: dict[str, Wrong] = {
    "residual left out": multiplier(
        GRANITE, ATTENDED, f"{R} 0.22 left out", lambda r: added(r, 1, 1, ATTENDED)
    ),
    "residual left out after the other block": multiplier(
        GRANITE, FED, f"{R} 0.22 left out", lambda r: added(r, 1, 1)
    ),
    "residual above 1 left out": multiplier(
        "granite-biased-tied-llama3", FED, f"{R} 1.5 left out", lambda r: added(r, 1, 1)
    ),
    "residual twice": multiplier(GRANITE, FED, f"{R} 0.22 applied twice", lambda r: added(r, 1, 0.22**2)),
    "residual divided": multiplier(GRANITE, FED, f"division by {R} 0.22", lambda r: added(r, 1, 1 / 0.22)),
    "another residual": multiplier(GRANITE, FED, f"{R} 0.3 for 0.22", lambda r: added(r, 1, 0.3)),
    "residual on the sum": multiplier(
        GRANITE, FED, f"{R} 0.22 on the whole sum", lambda r: added(r, 0.22, 0.22)
    ),
    "residual on the stream": multiplier(
        GRANITE, FED, f"{R} 0.22 on the stream, not on the branch", lambda r: added(r, 0.22, 1)
    ),
    "subtracted beside a multiplier": wrong(
        GRANITE, FED, "residual", "ffn_out subtracted fits", lambda r: added(r, 1, -0.22)
    ),
    "twice beside a multiplier": wrong(
        GRANITE, FED, "residual", "ffn_out added twice fits", lambda r: added(r, 1, 0.44)
    ),
    "another stream beside a multiplier": wrong(
        GRANITE,
        FED,
        "residual-source",
        "ffn_out added to the layer's input for post_attn_residual",
        lambda r: r[0, "post_ffn_residual"] + 0.22 * r[1, "ffn_out"],
    ),
    "a branch without a multiplier": wrong(
        "llama", FED, "residual", "^in the residual sum ffn_out x 0.22 fits", lambda r: added(r, 1, 0.22)
    ),
    "embedding left out": multiplier(GRANITE, EMBEDDED, f"{E} 12 left out", lambda r: rows(r, 1)),
    "embedding twice": multiplier(GRANITE, EMBEDDED, f"{E} 12 applied twice", lambda r: rows(r, 144)),
    "embedding divided": multiplier(GRANITE, EMBEDDED, f"division by {E} 12", lambda r: rows(r, 1 / 12)),
    "another embedding": multiplier(GRANITE, EMBEDDED, f"{E} 10 for 12", lambda r: rows(r, 10)),
    "Gemma's embedding left out": multiplier("gemma2", EMBEDDED, f"{E} 8 left out", lambda r: rows(r, 1)),
    "Gemma's embedding twice": multiplier("gemma3", EMBEDDED, f"{E} 8 applied twice", lambda r: rows(r, 64)),
    "scores by the head": multiplier(
        GRANITE, SCORES, rf"1/sqrt\(head_dim\) for {A} 0.0625", lambda r: scores(r, 24**-0.5)
    ),
    "scores left out": multiplier(GRANITE, SCORES, f"{A} 0.0625 left out", lambda r: scores(r, 1)),
    "other scores": multiplier(GRANITE, SCORES, f"{A} 0.07 for 0.0625", lambda r: scores(r, 0.07)),
    "scores by the head under a cap": multiplier(
        "gemma2", SCORES, rf"1/sqrt\(head_dim\) for {A} 0.223607", lambda r: scores(r, 24**-0.5, 3.0)
    ),
    "other scores under a cap": multiplier(
        "gemma2", SCORES, f"{A} 0.1 for 0.223607", lambda r: scores(r, 0.1, 3.0)
    ),
    "logits not divided": multiplier(GRANITE, LOGITS, "the logits not divided by 8", lambda r: logits(r)),
    "logits divided twice": multiplier(
        GRANITE, LOGITS, "the logits divided by 8 twice", lambda r: logits(r, 1 / 64)
    ),
    "logits multiplied": multiplier(
        GRANITE, LOGITS, "the logits multiplied by 8, not divided", lambda r: logits(r, 8)
    ),
    "logits divided by another": multiplier(
        GRANITE, LOGITS, "the logits divided by 10, not by 8", lambda r: logits(r, 0.1)
    ),
    "logits of another token, divided": wrong(
        GRANITE, LOGITS, "other-input", "token 2 instead of the last", lambda r: logits(r, 1 / 8, token=2)
    ),
    "scaled logits under a cap": multiplier(
        "gemma2", LOGITS, "the logits x 1.37 before their soft-cap", lambda r: logits(r, 1.37, 30)
    ),
}

CAPS: dict[str, Wrong] = {
    "no cap on scores": cap("gemma2", SCORES, "no soft-cap of 3 fits", lambda r: scores(r, 20**-0.5)),
    "a usual cap on scores": cap(
        "gemma2",
        SCORES,
        "values soft-capped at 50 fits.*the model declares 3",
        lambda r: scores(r, 20**-0.5, 50),
    ),
    "an odd cap on scores": cap(
        "gemma2",
        SCORES,
        "values soft-capped at 7.3 fits.*the model declares 3",
        lambda r: scores(r, 20**-0.5, 7.3),
    ),
    "a cap that scores do not have": cap(
        "llama", SCORES, "values soft-capped at 4 fits", lambda r: scores(r, 24**-0.5, 4)
    ),
    "no cap on logits": cap("gemma2", LOGITS, "no soft-cap of 30 fits", lambda r: logits(r)),
    "an odd cap on logits": cap(
        "gemma2",
        LOGITS,
        "values soft-capped at 17 fits.*the model declares 30",
        lambda r: logits(r, 1, 17),
    ),
    "no cap where all is near it": cap(
        "gemma3-capped-pattern", LOGITS, "no soft-cap of 2 fits", lambda r: logits(r)
    ),
    "a wider cap where all is near it": cap(
        "gemma3-capped-pattern",
        LOGITS,
        "values soft-capped at 30 fits.*the model declares 2",
        lambda r: logits(r, 1, 30),
    ),
    "a cap that logits do not have": cap(
        "llama", LOGITS, "values soft-capped at 11 fits", lambda r: logits(r, 1, 11)
    ),
}
"""Of the second layer of each recipe's checkpoint, on nine tokens."""
