"""VaultGemma (Sinha et al. 2025): a Gemma 2 without the norms after its blocks."""

from __future__ import annotations

from apr_falsify.model.families.gemma import GEMMA2
from apr_falsify.model.family import Family
from apr_falsify.model.names import HF_GEMMA2, without

VAULTGEMMA = Family(
    name="vaultgemma",
    title="VaultGemma",
    model_types=("vaultgemma",),
    weights=without(HF_GEMMA2, "attn_post_norm", "ffn_post_norm"),
    settings=GEMMA2.settings,
    norm_offset=GEMMA2.norm_offset,
    config_keys=GEMMA2.config_keys,
    config_defaults=GEMMA2.config_defaults,
)
