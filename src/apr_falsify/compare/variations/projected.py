"""What goes wrong where a stage is multiplied with weights: order, other weights, other input."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping

import numpy as np

from apr_falsify.compare.variations.case import F64, Case, Guess, MadeTensor, reweighed
from apr_falsify.compare.variations.common import parts
from apr_falsify.compare.variations.feedforward import ACTIVATIONS
from apr_falsify.compare.variations.norms import layer_input
from apr_falsify.formats.tensors import FloatArray, Tensor
from apr_falsify.model.names import ROLES
from apr_falsify.model.stages import STAGES
from apr_falsify.numerics.operand_rules import Operation

WEIGHTED: Mapping[str, tuple[str, ...]] = {
    "embedding": ("embed",),
    "attn_norm": ("attn_norm",),
    "qkv_matmul": ("q", "k", "v", "q_a", "q_b", "kv_a", "k_rope", "kv_b"),
    "qkv_bias": ("q_bias", "k_bias", "v_bias"),
    "q_post_rope": ("q_norm",),
    "k_post_rope": ("k_norm",),
    "scan_qkv": ("scan_qkv",),
    "scan_gate": ("scan_z",),
    "scan_xbc": ("scan_xbc",),
    "dt_logits": ("scan_dt",),
    "beta_logits": ("scan_b",),
    "decay_logits": ("scan_a",),
    "conv_proj": ("conv_proj",),
    "attn_gate": ("attn_gate",),
    "attn_out": ("o", "scan_o", "conv_o"),
    "ffn_norm": ("ffn_norm",),
    "router_logits": ("router",),
    "ffn_gate": ("gate",),
    "ffn_up": ("up",),
    "ffn_out": ("down",),
    "final_norm": ("final_norm",),
    "lm_head": ("lm_head",),
    "attn_proj": ("o",),
    "ffn_proj": ("down",),
    "lm_head_proj": ("lm_head",),
    "q_latent": ("q_a",),
    "q_latent_norm": ("q_a_norm",),
    "q_up": ("q", "q_b"),
    "kv_latent": ("kv_a",),
    "kv_latent_norm": ("kv_a_norm",),
    "kv_up": ("kv_b",),
    "k_shared": ("k_rope",),
}
"""Stage -> the roles of the weights it uses."""

_LOGITS = ("lm_head_proj", "lm_head")

MOST_VALUES = 1 << 26
"""Above this many weights a stage is not multiplied again for an explanation (7B: seconds per pass)."""


def is_product(case: Case) -> bool:
    """Whether the stage is multiplied with weights, and what with them is all that it is computed from."""
    return case.operation is Operation.PROJECTION and len(case.known) == 1


def is_product_of_all_tokens(case: Case) -> bool:
    """Whether it is, for each token by itself."""
    return is_product(case) and "tokens" in STAGES[case.name].axes


def small(case: Case) -> bool:
    """Whether the stage's weights are few enough to multiply with them again."""
    tensors = tensors_of(case)
    return bool(tensors) and sum(int(np.prod(tensor.shape)) for tensor in tensors.values()) <= MOST_VALUES


def tensors_of(case: Case, layer: int | None = None) -> dict[str, Tensor]:
    """Return the weights that the stage uses, by role, of another layer where one is named."""
    layer = case.layer if layer is None else layer
    roles = [role for role in WEIGHTED.get(case.name, ()) if role in case.weights.names]
    found = {role: case.weights.find(role, layer) for role in roles}
    return {role: tensor for role, tensor in found.items() if tensor is not None}


def other_order(case: Case) -> Iterator[Guess]:
    """Yield q|k|v in other orders: of the parts, by kv group, and of rotary rows."""
    columns = parts(case)
    for order in list(itertools.permutations("qkv"))[1:]:
        yield _gathered(
            case, f"the order {'|'.join(order)} for q|k|v", np.r_[*(columns[role] for role in order)]
        )
    everything = np.arange(case.expected.shape[1])
    g = case.geometry
    grouped = [everything[columns[role]].reshape(g.kv_heads, -1) for role in "qkv"]
    says = "q, k and v side by side per kv head, not end to end,"
    yield _gathered(case, says, np.concatenate(grouped, axis=1).reshape(-1))


def rotary_order(case: Case) -> Iterator[Guess]:
    """Yield q and k, or one of them, with each head's rows in the order of the other kind of rotary pairs."""
    size = case.geometry.head_dim
    width, start = case.rope.width(size), case.geometry.rotary_start(case.layer)
    everything = np.arange(case.expected.shape[1])
    orders = {"interleaved for half-split": (2, width // 2), "half-split for interleaved": (width // 2, 2)}
    for (who, columns), (says, shape) in itertools.product(_rotary_columns(case).items(), orders.items()):
        heads = everything[columns].reshape(-1, size).copy()
        turned = np.s_[:, start : start + width]
        heads[turned] = heads[turned].reshape(-1, *shape).swapaxes(1, 2).reshape(-1, width)
        order = everything.copy()
        order[columns] = heads.reshape(-1)
        yield _gathered(case, f"channels of each {who}head in rotary order {says}", order)


def _rotary_columns(case: Case) -> dict[str, slice]:
    if not case.name.startswith("qkv"):
        return {"": slice(None)}
    own = parts(case)
    return {"q and k ": slice(0, own["v"].start), "q ": own["q"], "k ": own["k"]}


def _gathered(case: Case, says: str, order: np.typing.NDArray[np.intp]) -> Guess:
    return Guess(says=says, values=case.expected[:, order], sigma=case.sigma[:, order])


def other_use(case: Case) -> Iterator[Guess]:
    """Yield the product with what belongs to the next stage done already."""
    stream = case.captured("post_attn_residual") if case.name == "ffn_out" else layer_input(case)
    if case.name in ("attn_out", "ffn_out") and stream is not None:
        added = case.geometry.residual_scale * case.expected + stream
        yield case.guess("the residual added here already", added, name="residual-included")
    if case.name == "ffn_gate":
        values = ACTIVATIONS["silu"](case.expected)
        yield case.guess("the activation applied here already", values, name="activation-included")
    if case.name in _LOGITS:
        top = np.max(case.expected)
        total = top + np.log(np.sum(np.exp(case.expected - top)))
        yield case.guess("logarithms of probabilities for logits", case.expected - total, name="log-softmax")
        probabilities = np.exp(case.expected - total)
        yield case.guess("probabilities for logits", probabilities, name="softmax-included")


def sibling_weights(case: Case) -> Iterator[Guess]:
    """Yield the stage with another role's weights: gate and up swapped, k and v, one norm for another."""
    own, swapped = tensors_of(case), {}
    last = case.geometry.layers - 1
    for role in own:
        for other in ROLES[role].alike:
            tensor = case.weights.find(other, last if case.layer is None else case.layer)
            if tensor is not None and tensor.shape == own[role].shape:
                swapped[role] = tensor
                if not likely(case, {role: tensor}):
                    continue
                weights = reweighed(case, {role: tensor})
                name = "swapped-gate-up" if other in ("gate", "up") else ""
                yield case.evaluated(f"the weights of {other} for {role}", weights=weights, name=name)
    if len(swapped) > 1:
        yield case.evaluated(
            f"the weights of {' and '.join(swapped)} swapped", weights=reweighed(case, swapped)
        )


def neighbour_weights(case: Case) -> Iterator[Guess]:
    """Yield the stage with the weights of the layer before or after, all of them or one role's."""
    if case.layer is None:
        return
    own, noun = tensors_of(case), "biases" if case.name == "qkv_bias" else "weights"
    for layer in (case.layer - 1, case.layer + 1):
        if not 0 <= layer < case.geometry.layers:
            continue
        others = tensors_of(case, layer)
        if others.keys() != own.keys():
            continue  # a layer of another kind
        if likely(case, others):
            yield case.evaluated(f"the {noun} of layer {layer}", weights=reweighed(case, others))
        for role in own if len(own) > 1 else ():
            if not likely(case, {role: others[role]}):
                continue
            weights = reweighed(case, {role: others[role]})
            part = role.removesuffix("_bias")
            yield case.evaluated(f"the {noun} of {part} of layer {layer}", weights=weights)


def transposed_weights(case: Case) -> Iterator[Guess]:
    """Yield the product with a square weight transposed."""
    for role, tensor in tensors_of(case).items():
        if len(tensor.shape) == 2 and tensor.shape[0] == tensor.shape[1] and case.name != "embedding":
            changed = {role: _made(tensor, tensor.rows(0, tensor.shape[0]).T)}
            if likely(case, changed):
                yield case.evaluated(f"{role} transposed", weights=reweighed(case, changed))


_LOOK = 32
"""As many rows of a weight are tried before all are."""


def likely(
    case: Case, weights: Mapping[str, Tensor] | None = None, inputs: Mapping[str, F64] | None = None
) -> bool:
    """Whether the first rows of each weight bring the product nearer to the subject's, with other weights
    or another input; nothing is ruled out where the stage is no product, or not linear in one.
    """
    capped = case.name == "lm_head" and case.geometry.final_softcap is not None
    if not is_product(case) or len(case.span) > 1 or capped:
        return True
    (name,) = case.known
    x, stand_in = (case.rule.left(_last(case, v[name])) for v in (case.inputs, inputs or case.inputs))
    scale = case.geometry.logit_scale if case.name == "lm_head" else 1.0
    left = before = 0.0
    for role, columns in _columns(case).items():
        own = case.weights.tensor(role, case.layer)
        other = (weights or {}).get(role, own)
        first = slice(columns.start or 0, (columns.start or 0) + min(_LOOK, own.shape[0]))
        right, subject = case.shaped(case.expected)[..., first], case.subject[..., first]
        rows, others = (t.rows(0, min(_LOOK, own.shape[0])).astype(np.float64).T for t in (own, other))
        change = scale * (stand_in @ others - x @ rows)
        wrong = right + change[-len(right) :] if right.ndim > 1 else right + change
        left += float(np.nansum(np.square(subject - wrong)))
        before += float(np.nansum(np.square(subject - right)))
    return not left > before


def _last(case: Case, x: F64) -> F64:
    return x[-1] if case.name in _LOGITS else x


def _columns(case: Case) -> Mapping[str, slice]:
    if case.name == "qkv_matmul":
        return parts(case)
    own = next(iter(tensors_of(case)), WEIGHTED[case.name][0])  # of a layer's kind
    return {own: slice(0, None)}


def _made(tensor: Tensor, values: FloatArray) -> MadeTensor:
    return MadeTensor(
        name=tensor.name, type="f32", shape=tensor.shape, decode=lambda start, stop: values[start:stop]
    )


_TAILS = (1, 8, 16, 32, 64, 128, 256)


def other_input(case: Case) -> Iterator[Guess]:
    """Yield the product of another input: unnormed, heads in another order, its last channels left out."""
    (role,) = case.known
    x = case.inputs[role]
    for says, value, name in _inputs(case, role, x):
        if value.shape == x.shape and likely(case, inputs={role: value}):
            yield case.evaluated(says, {role: value}, name=name)


def _inputs(case: Case, role: str, x: F64) -> Iterator[tuple[str, F64, str]]:
    yield from ((f"{says} for {role}", value, "") for says, value in _stand_ins(case))
    if case.name == "attn_out":
        heads = x.reshape(len(x), -1, case.geometry.value_dim)
        yield "[heads, tokens, D] read as [tokens, heads, D]", heads.swapaxes(0, 1).reshape(x.shape), ""
        yield "heads in reverse order", heads[:, ::-1].reshape(x.shape), ""
    for count in _TAILS:
        if count < x.shape[-1]:
            cut = x.copy()
            cut[..., -count:] = 0
            yield f"the last {count} channels of {role} left out", cut, "truncated-sum"


def _stand_ins(case: Case) -> Iterator[tuple[str, F64]]:
    """Yield what may be multiplied in place of the stage's input."""
    names = {
        "qkv_matmul": ("ffn_norm",),
        "ffn_gate": ("post_attn_residual", "attn_norm", "attn_out"),
        "ffn_up": ("post_attn_residual", "attn_norm", "attn_out"),
        "ffn_out": ("ffn_silu", "ffn_up", "ffn_gate"),
        "attn_out": ("q_post_rope",),
    }
    if case.name == "qkv_matmul" and (stream := layer_input(case)) is not None:
        yield "the layer's input, not normed,", stream
    if case.name in _LOGITS:
        stream = case.captured("post_ffn_residual", case.geometry.layers - 1)
        if stream is not None:
            yield "the hidden state, not normed,", stream
        normed = case.inputs["final_norm"]
        yield from (
            (f"token {t} instead of the last", np.roll(normed, -1 - t, axis=0))
            for t in range(min(len(normed) - 1, 16))
        )
    for name in names.get(case.name, ()):
        if (value := case.captured(name)) is not None:
            yield name, value


def one_input_channel(case: Case) -> Iterator[Guess]:
    """Yield the replay plus a multiple of one input channel: what is left over has rank 1."""
    (role,) = case.known
    x, e = case.rule.left(case.inputs[role]), case.shaped(case.expected)
    if e.ndim != 2 or min(e.shape) < 3 or len(x) != len(e):
        return
    left, _, _ = np.linalg.svd(np.nan_to_num(case.subject - e), full_matrices=False)
    norms = np.linalg.norm(x, axis=0)
    likeness = np.abs(left[:, 0] @ x) / np.where(norms > 0, norms, np.inf)
    channel = int(np.argmax(likeness))
    column, share = x[:, channel, None], 1 / np.square(case.shaped_sigma)
    slope = np.sum(column * (case.subject - e) * share, axis=0) / np.sum(column**2 * share, axis=0)
    says = f"channel {channel} of {role} alone entering by another weight"
    yield Guess(says=says, values=e + column * slope, sigma=case.sigma)
