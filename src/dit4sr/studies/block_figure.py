"""The figure of a DiT4SR block, drawn from its specification and nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dit4sr.models.spec import LRStreamSpec
from dit4sr.studies.svg import FAINT, FILLS, Drawing, Point

C, X, L = 430.0, 690.0, 950.0
"""Horizontal centres of the three streams."""
WIDE = 190.0
ORANGE = FILLS["trainable"][1]

STARTS = (
    "P start at zero on pretrained weights and as the identity from scratch; the injection starts at zero; "
    "s = 1 in training."
)

INJECTIONS = {
    "conv": ("DWConv 3×3\non the token grid", "ff.control_conv"),
    "linear": ("linear layer\n4D → 4D", "ff.control_linear"),
    "per_channel": ("scale and shift\nper channel", "ff.control_scale ff.control_shift"),
}
"""Injection → label, and the names of its parameters in a block."""


@dataclass(frozen=True)
class Facts:
    """What the figure states in numbers.

    Attributes:
        name: of the model.
        backbone: its name.
        transformer: fields of the transformer.
        parameters: distinct ones, of the whole network.
        control: of which are control weights.
        pretrained: whether the base is pretrained, and only control weights train.
    """

    name: str
    backbone: str
    transformer: Mapping[str, Any]
    parameters: int
    control: int
    pretrained: bool


def draw_block(spec: LRStreamSpec, facts: Facts) -> str:
    """The figure of a model: the network at the left, one block of it at the right. SVG."""
    fields = facts.transformer
    picture = Drawing(1120, 1170, f"{facts.name} on {facts.backbone}", describe(spec))
    picture.text((28, 40), facts.name, size=24, bold=True, anchor="start")
    picture.text((28, 64), describe(spec), size=13, anchor="start", colour=FAINT)
    draw_network(picture, fields)
    last = fields["num_layers"] - 1
    picture.panel(290, 84, 806, 960, f"One block of {fields['num_layers']}")
    draw_attention(picture, spec, fields)
    draw_dual(picture, spec, fields)
    draw_mlp(picture, spec)
    dropped = "after its injection" if spec.injection != "none" else "after giving keys and values"
    picture.text(
        (306, 1032),
        f"Block {last}, the last: C gives keys and values alone; L ends {dropped}.",
        size=12,
        anchor="start",
        colour=FAINT,
    )
    draw_legend(picture, facts, ("frozen", "trainable", "attention"), STARTS)
    return picture.render()


def describe(spec: LRStreamSpec) -> str:
    """The specification in one line."""
    return " · ".join(
        f"{name}: {value}"
        for name, value in (
            ("attention", spec.attention),
            ("LR residual", "yes" if spec.residual else "no"),
            ("injection", spec.injection.replace("_", " ")),
            ("keys of L from", "L" if spec.key_source == "lr" else "X"),
        )
    )


def draw_network(picture: Drawing, fields: Mapping[str, Any]) -> None:
    """The whole network, from inputs to velocity."""
    picture.panel(24, 84, 246, 960, "Network")
    x, right = 90.0, 204.0
    picture.box((x, 150), 104, "noisy\nlatent z_{t}", "x", height=46)
    picture.box((right, 150), 104, "LR image,\nupsampled", "l", height=46)
    picture.box((right, 226), 104, "VAE encoder", "frozen")
    picture.arrow([(right, 173), (right, 209)])
    picture.box((147, 302), 218, "patch embedding + positions\nshared by X and L", "frozen", height=46)
    picture.arrow([(x, 173), (x, 279)])
    picture.arrow([(right, 243), (right, 279)])
    picture.text((x - 12, 348), "X", bold=True, anchor="end")
    picture.text((right + 12, 348), "L", bold=True, anchor="start")
    picture.arrow([(x, 325), (x, 383)])
    picture.arrow([(right, 325), (right, 383)])
    blocks = f"{fields['num_layers']} blocks"
    picture.box(
        (147, 470),
        218,
        f"{blocks}\n\nwidth D = {width_of(fields)},\n{fields['num_attention_heads']} heads"
        f" of {fields['attention_head_dim']}\npatch {fields['patch_size']}",
        "attention",
        height=174,
    )
    picture.arrow([(x, 557), (x, 619)])
    picture.text((x + 12, 590), "X", bold=True, anchor="start")
    picture.text((right, 590), "L is dropped", colour=FAINT, size=12)
    picture.box((147, 642), 218, "AdaLN, linear, unpatchify", "frozen", height=46)
    picture.arrow([(147, 665), (147, 707)])
    picture.box((147, 726), 150, "velocity ε − z", "x")
    picture.box((147, 826), 218, "text encoders\n→ tokens C, pooled vector", "frozen", height=46)
    picture.box((147, 906), 218, "embedding of 1000σ and\nof the pooled vector\n→ every AdaLN", "frozen", height=62)
    picture.arrow([(147, 849), (147, 875)])


def draw_attention(picture: Drawing, spec: LRStreamSpec, fields: Mapping[str, Any]) -> None:
    """From the streams to the first gated sum."""
    for x, name, kind in (
        (C, "C: text tokens", "c"),
        (X, "X: noisy latent tokens", "x"),
        (L, "L: LR latent tokens", "l"),
    ):
        picture.box((x, 140), WIDE, name, kind)
        picture.arrow([(x, 157), (x, 183)])
        picture.arrow([(x, 217), (x, 237)])
    picture.box((C, 200), WIDE, "AdaLN of the text", "frozen")
    picture.box(((X + L) / 2, 200), L - X + WIDE, "AdaLN, the same modulation for X and L", "frozen")
    picture.box((C, 254), WIDE, "W_{q}, W_{k}, W_{v} of the text", "frozen")
    picture.box((X, 254), WIDE, "W_{q}, W_{k}, W_{v}", "frozen")
    picture.box((L, 254), WIDE, "W_{q}, W_{k}, W_{v} (shared)", "frozen")
    draw_control(picture, spec)
    qk = "RMSNorm on Q and K; " if fields["qk_norm"] else ""
    if spec.attention == "joint":
        picture.box(
            ((C + L) / 2, 400),
            L - C + WIDE,
            f"LR Integration in Attention\n{qk}one softmax over [X; L; C]",
            "attention",
            height=50,
        )
    else:
        picture.box(
            ((C + X) / 2, 400),
            X - C + WIDE,
            f"Attention as in SD3\n{qk}one softmax over [X; C]",
            "attention",
            height=50,
        )
        picture.box((L, 400), WIDE, "Attention of L alone\nsoftmax over [L]", "attention", height=50)
    for x in (C, X):
        picture.arrow([(x, 271), (x, 375)])
        picture.arrow([(x, 425), (x, 469)])
        picture.box((x, 486), WIDE, "W_{o}" + (" of the text" if x == C else ""), "frozen")
    picture.box((L, 486), WIDE, "P_{o} (starts as W_{o})", "trainable", parameters=["attn.to_out_control"])
    if spec.residual:
        picture.arrow([(L, 425), (L, 436)], head=False)
        picture.arrow([(L, 228), (L + 118, 228), (L + 118, 446), (L + 12, 446)], name="residual", colour=ORANGE)
        picture.circle((L, 446), "+")
        picture.text((L + 108, 361), "LR Residual", size=12, anchor="end", colour=ORANGE, bold=True)
        picture.arrow([(L, 456), (L, 469)])
    else:
        picture.arrow([(L, 425), (L, 469)])
    for x in (C, X, L):
        draw_gated_sum(picture, x, 503, 560, (x - WIDE / 2, 140))


def draw_control(picture: Drawing, spec: LRStreamSpec) -> None:
    """P_{q}, P_{k} and P_{v}, and where the keys of L come from."""
    if spec.key_source == "lr":
        names = [f"attn.to_{n}_control" for n in "qkv"]
        picture.box((L, 318), WIDE, "P_{q}, P_{k}, P_{v}", "trainable", parameters=names)
        picture.arrow([(L, 271), (L, 301)])
        picture.arrow([(L, 335), (L, 375)])
        return
    picture.box(
        (L + 34, 318), WIDE - 68, "P_{q}, P_{v}", "trainable", parameters=["attn.to_q_control", "attn.to_v_control"]
    )
    picture.box((L - 66, 318), 58, "P_{k}", "unused", parameters=["attn.to_k_control"], dashed=True)
    picture.arrow([(L, 271), (L, 301)])
    picture.arrow([(L, 335), (L, 375)])
    picture.text((L - 66, 296), "never read", size=10, colour=FAINT)
    picture.arrow([(X, 346), (L - 40, 346), (L - 40, 375)], name="noise-keys", colour=ORANGE)
    picture.text((X + 76, 364), "K_{L} = norm(norm(K_{X}))", size=12, colour=ORANGE, bold=True)


def draw_gated_sum(picture: Drawing, x: float, top: float, y: float, start: Point) -> None:
    """Gate and residual of a stream: its input runs past at the left, from ``start``."""
    picture.arrow([(x, top), (x, y - 41)])
    picture.circle((x, y - 31), "×")
    picture.text((x + 14, y - 27), "gate", size=11, anchor="start", colour=FAINT)
    picture.arrow([(x, y - 21), (x, y - 10)], head=False)
    side = x - WIDE / 2 - 14
    picture.arrow([start, (side, start[1]), (side, y), (x - 11, y)])
    picture.circle((x, y), "+")


def draw_dual(picture: Drawing, spec: LRStreamSpec, fields: Mapping[str, Any]) -> None:
    """The second attention, where the backbone has it."""
    layers = list(fields["dual_attention_layers"])
    if not layers:
        for x in (C, X, L):
            picture.arrow([(x, 570), (x, 693)])
        return
    blocks = (
        f"blocks {layers[0]}–{layers[-1]}"
        if layers == list(range(layers[0], layers[-1] + 1))
        else ("blocks " + ", ".join(map(str, layers)))
    )
    over = "[X; L]" if spec.attention == "joint" else "[X] and, apart, [L]"
    own = "P_{q}, P_{k}, P_{v}, P_{o}" if spec.key_source == "lr" else "P_{q}, P_{v}, P_{o}"
    residual = " and LR Residual" if spec.residual else ""
    picture.box(
        ((X + L) / 2, 622),
        L - X + WIDE,
        f"+ gate × dual attention over {over}, in {blocks}\non the block's input, second AdaLN; own {own}{residual}",
        "trainable",
        height=50,
        size=12,
        parameters=[f"attn2.to_{n}_control" for n in ("q", "k", "v", "out")],
        dashed=True,
    )
    picture.arrow([(C, 570), (C, 693)])
    for x in (X, L):
        picture.arrow([(x, 570), (x, 597)])
        picture.arrow([(x, 647), (x, 693)])


def draw_mlp(picture: Drawing, spec: LRStreamSpec) -> None:
    """From the second norm to the block's end."""
    picture.box((C, 710), WIDE, "AdaLN of the text", "frozen")
    picture.box(((X + L) / 2, 710), L - X + WIDE, "AdaLN, the same modulation for X and L", "frozen")
    for x in (C, X, L):
        own = " of the text" if x == C else " (shared)" if x == L else ""
        picture.arrow([(x, 727), (x, 747)])
        picture.box((x, 764), WIDE, "W_{1}, GELU" + own, "frozen")
        picture.box((x, 904), WIDE, "W_{2}" + own, "frozen")
        draw_gated_sum(picture, x, 921, 976, (x, 672))
        picture.arrow([(x, 986), (x, 1012)])
        if x != X or spec.injection == "none":
            picture.arrow([(x, 781), (x, 887)])
    if spec.injection == "none":
        return
    label, names = INJECTIONS[spec.injection]
    middle, y = (X + L) / 2 + 8, 838.0
    picture.text((X + 78, y - 36), "LR Injection", size=12, colour=ORANGE, bold=True)
    picture.box((middle, y), 132, label, "trainable", parameters=names.split(), size=12, height=42)
    picture.arrow([(L, y), (middle + 66, y)], name="injection", colour=ORANGE)
    picture.arrow([(middle - 66, y), (X + 11, y)], name="injection", colour=ORANGE)
    picture.text((X + 38, y - 8), "s ×", size=12, colour=ORANGE, bold=True)
    picture.arrow([(X, 781), (X, y - 10)])
    picture.circle((X, y), "+")
    picture.arrow([(X, y + 10), (X, 887)])


def draw_legend(picture: Drawing, facts: Facts, kinds: Sequence[str], note: str) -> None:
    """What the colours mean, the counts, and a note."""
    labels = {
        "frozen": "pretrained weights, frozen" if facts.pretrained else "base weights",
        "trainable": "control weights, trained",
        "attention": "attention",
    }
    y = 1074
    for i, kind in enumerate(kinds):
        x = 28 + 250 * i
        picture.box((x + 17, y), 34, "", kind, height=20)
        picture.text((x + 44, y + 5), labels[kind], anchor="start")
    count = (
        f"{facts.control / 1e6:.2f}M control weights of {facts.parameters / 1e6:.2f}M parameters on {facts.backbone}"
    )
    trained = "" if facts.pretrained else "; from scratch every weight is trained"
    picture.text((28, y + 40), count + trained, anchor="start")
    picture.text((28, y + 64), note, anchor="start", size=12, colour=FAINT)


def width_of(fields: Mapping[str, Any]) -> int:
    """D."""
    return int(fields["num_attention_heads"]) * int(fields["attention_head_dim"])
