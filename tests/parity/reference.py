"""DiT4SR's forward pass written out once more, from the equations, sharing no code with the package.

Plain tensors and a state dict; each stream on its own, each head by an explicit softmax, the
depth-wise convolution as nine shifted products. Slow and literal on purpose.

Streams: X (noisy latent), L (LR latent), C (text). Shapes: (B, tokens, D).
"""

# ruff: noqa: E741  (x, l and c are the streams X, L and C of the equations)

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]


def linear(w: Weights, name: str, x: Tensor) -> Tensor:
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def gelu_tanh(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def layer_norm(x: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt(centred.square().mean(-1, keepdim=True) + 1e-6)


def modulate(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return layer_norm(x) * (1 + scale[:, None]) + shift[:, None]


def rms_norm(w: Weights, name: str, heads: list[Tensor]) -> list[Tensor]:
    """RMSNorm of each head; the identity where the network has no qk-norm."""
    if f"{name}.weight" not in w:
        return heads
    return [h / torch.sqrt(h.square().mean(-1, keepdim=True) + 1e-6) * w[f"{name}.weight"] for h in heads]


def attention(q: list[Tensor], k: list[Tensor], v: list[Tensor]) -> Tensor:
    """Head by head; the heads' outputs side by side on the channels."""
    outputs = []
    for q_h, k_h, v_h in zip(q, k, v, strict=True):
        scores = q_h @ k_h.transpose(1, 2) / math.sqrt(q_h.shape[-1])
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        outputs.append(weights / weights.sum(-1, keepdim=True) @ v_h)
    return torch.cat(outputs, dim=-1)


def along_tokens(*streams: list[Tensor]) -> list[Tensor]:
    return [torch.cat(parts, dim=1) for parts in zip(*streams, strict=True)]


def attend(
    w: Weights, name: str, x: Tensor, l: Tensor | None, c: Tensor | None, heads: int, spec: Mapping[str, Any]
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The attention's contribution to X, L and C before their gates (None where a stream is absent)."""

    def split(t: Tensor) -> list[Tensor]:
        return list(t.chunk(heads, dim=-1))

    q_x = rms_norm(w, f"{name}.norm_q", split(linear(w, f"{name}.to_q", x)))
    k_x = rms_norm(w, f"{name}.norm_k", split(linear(w, f"{name}.to_k", x)))
    v_x = split(linear(w, f"{name}.to_v", x))
    if c is not None:
        k_c = rms_norm(w, f"{name}.norm_added_k", split(linear(w, f"{name}.add_k_proj", c)))
        v_c = split(linear(w, f"{name}.add_v_proj", c))
        q_c = rms_norm(w, f"{name}.norm_added_q", split(linear(w, f"{name}.add_q_proj", c)))
    if l is not None:
        q_l = linear(w, f"{name}.to_q_control", linear(w, f"{name}.to_q", l))
        k_l = linear(w, f"{name}.to_k_control", linear(w, f"{name}.to_k", l))
        v_l = split(linear(w, f"{name}.to_v_control", linear(w, f"{name}.to_v", l)))
        q_l = rms_norm(w, f"{name}.norm_q", split(q_l))
        qk_norm = f"{name}.norm_k.weight" in w
        if spec["key_source"] == "noise" and qk_norm:
            # norm_k(norm_k(K_X)): k_x is normalised once already.
            k_l = rms_norm(w, f"{name}.norm_k", k_x)
        else:
            k_l = rms_norm(w, f"{name}.norm_k", split(k_l))

    def attend_from(q: list[Tensor], with_lr: bool) -> Tensor:
        keys, values = [k_x], [v_x]
        if with_lr:
            keys, values = [*keys, k_l], [*values, v_l]
        if c is not None:
            keys, values = [*keys, k_c], [*values, v_c]
        return attention(q, along_tokens(*keys), along_tokens(*values))

    joint = l is not None and spec["attention"] == "joint"
    out_x = linear(w, f"{name}.to_out.0", attend_from(q_x, joint))
    out_c = None
    if c is not None and f"{name}.to_add_out.weight" in w:
        out_c = linear(w, f"{name}.to_add_out", attend_from(q_c, joint))
    out_l = None
    if l is not None:
        o_l = attend_from(q_l, True) if joint else attention(q_l, k_l, v_l)
        out_l = linear(w, f"{name}.to_out_control", o_l + l if spec["residual"] else o_l)
    return out_x, out_l, out_c


def depthwise_3x3(w: Weights, name: str, h: Tensor, grid: tuple[int, int]) -> Tensor:
    """Nine shifted, zero-padded copies of the token grid, each times its own weight per channel."""
    rows, columns = grid
    image = h.reshape(h.shape[0], rows, columns, -1)
    padded = torch.zeros(h.shape[0], rows + 2, columns + 2, h.shape[-1], dtype=h.dtype)
    padded[:, 1:-1, 1:-1] = image
    out = torch.zeros_like(image)
    for dy in range(3):
        for dx in range(3):
            out += padded[:, dy : dy + rows, dx : dx + columns] * w[f"{name}.weight"][:, 0, dy, dx]
    return out.reshape(h.shape) + w[f"{name}.bias"]


def inject(w: Weights, name: str, h: Tensor, grid: tuple[int, int], injection: str) -> Tensor | float:
    if injection == "conv":
        return depthwise_3x3(w, f"{name}.control_conv", h, grid)
    if injection == "linear":
        return linear(w, f"{name}.control_linear", h)
    if injection == "per_channel":
        return h * w[f"{name}.control_scale"] + w[f"{name}.control_shift"]
    return 0.0


def block(
    w: Weights,
    name: str,
    x: Tensor,
    l: Tensor | None,
    c: Tensor,
    temb: Tensor,
    *,
    heads: int,
    grid: tuple[int, int],
    spec: Mapping[str, Any],
    scale: float,
) -> tuple[Tensor, Tensor | None, Tensor]:
    dual, last = f"{name}.attn2.to_q.weight" in w, f"{name}.ff_context.net.2.weight" not in w
    m = linear(w, f"{name}.norm1.linear", silu(temb)).chunk(9 if dual else 6, dim=-1)
    shift1, scale1, gate1, shift_mlp, scale_mlp, gate_mlp = m[:6]
    m_c = linear(w, f"{name}.norm1_context.linear", silu(temb)).chunk(2 if last else 6, dim=-1)
    c_hat = modulate(c, m_c[0], m_c[1]) if last else modulate(c, m_c[1], m_c[0])

    l_hat = None if l is None else modulate(l, scale1, shift1)
    out_x, out_l, out_c = attend(w, f"{name}.attn", modulate(x, scale1, shift1), l_hat, c_hat, heads, spec)
    new_x = x + gate1[:, None] * out_x
    new_l = None if l is None else l + gate1[:, None] * out_l
    if dual:
        # Its norms too come from the block's input; its output is added after the first.
        shift2, scale2, gate2 = m[6:]
        l_hat = None if l is None else modulate(l, scale2, shift2)
        out_x, out_l, _ = attend(w, f"{name}.attn2", modulate(x, scale2, shift2), l_hat, None, heads, spec)
        new_x = new_x + gate2[:, None] * out_x
        new_l = None if l is None else new_l + gate2[:, None] * out_l

    h_x = gelu_tanh(linear(w, f"{name}.ff.net.0.proj", modulate(new_x, scale_mlp, shift_mlp)))
    if new_l is not None:
        h_l = gelu_tanh(linear(w, f"{name}.ff.net.0.proj", modulate(new_l, scale_mlp, shift_mlp)))
        h_x = h_x + scale * inject(w, f"{name}.ff", h_l, grid, spec["injection"])
        new_l = new_l + gate_mlp[:, None] * linear(w, f"{name}.ff.net.2", h_l)
    new_x = new_x + gate_mlp[:, None] * linear(w, f"{name}.ff.net.2", h_x)

    if not last:
        _, _, c_gate1, c_shift_mlp, c_scale_mlp, c_gate_mlp = m_c
        c = c + c_gate1[:, None] * out_c
        h_c = gelu_tanh(linear(w, f"{name}.ff_context.net.0.proj", modulate(c, c_scale_mlp, c_shift_mlp)))
        c = c + c_gate_mlp[:, None] * linear(w, f"{name}.ff_context.net.2", h_c)
    return new_x, new_l, c


def embed_patches(w: Weights, latent: Tensor, patch: int, table: int) -> Tensor:
    """Patches by a linear map, plus the centre of the positional table: (B, K, D)."""
    B, C, H, W = latent.shape
    rows, columns = H // patch, W // patch
    patches = latent.reshape(B, C, rows, patch, columns, patch).permute(0, 2, 4, 1, 3, 5)
    weight = w["pos_embed.proj.weight"]
    tokens = patches.reshape(B, rows * columns, -1) @ weight.reshape(weight.shape[0], -1).T
    positions = w["pos_embed.pos_embed"].reshape(table, table, -1)
    top, left = (table - rows) // 2, (table - columns) // 2
    positions = positions[top : top + rows, left : left + columns].reshape(rows * columns, -1)
    return tokens + w["pos_embed.proj.bias"] + positions


def velocity(
    w: Weights,
    fields: Mapping[str, Any],
    spec: Mapping[str, Any],
    z: Tensor,
    lr: Tensor | None,
    timestep: Tensor,
    tokens: Tensor,
    pooled: Tensor,
    scale: float = 1.0,
) -> Tensor:
    """The network's velocity, (B, C, H, W).

    Args:
        w: a state dict.
        fields: the SD3 fields of the config.
        spec: attention, residual, injection and key_source.
        scale: s of the LR Injection.
    """
    patch, heads = fields["patch_size"], fields["num_attention_heads"]
    grid = (z.shape[2] // patch, z.shape[3] // patch)
    x = embed_patches(w, z, patch, fields["pos_embed_max_size"])
    l = None if lr is None else embed_patches(w, lr, patch, fields["pos_embed_max_size"])
    c = linear(w, "context_embedder", tokens)

    # 256 sinusoids of 1000σ, cosines first, in float32 as everywhere.
    frequencies = torch.exp(-math.log(10000) * torch.arange(128, dtype=torch.float32) / 128)
    angles = timestep.float()[:, None] * frequencies
    features = torch.cat([angles.cos(), angles.sin()], dim=-1).to(z.dtype)
    time = linear(w, "time_text_embed.timestep_embedder.linear_1", features)
    text = linear(w, "time_text_embed.text_embedder.linear_1", pooled)
    temb = linear(w, "time_text_embed.timestep_embedder.linear_2", silu(time))
    temb = temb + linear(w, "time_text_embed.text_embedder.linear_2", silu(text))

    for i in range(fields["num_layers"]):
        name = f"transformer_blocks.{i}"
        x, l, c = block(w, name, x, l, c, temb, heads=heads, grid=grid, spec=spec, scale=scale)

    out_scale, out_shift = linear(w, "norm_out.linear", silu(temb)).chunk(2, dim=-1)
    x = linear(w, "proj_out", modulate(x, out_scale, out_shift))
    x = x.reshape(x.shape[0], *grid, patch, patch, -1)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(x.shape[0], -1, grid[0] * patch, grid[1] * patch)
