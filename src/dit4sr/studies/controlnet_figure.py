"""The figure of the SD3-ControlNet baseline, drawn from the depth of its network."""

from __future__ import annotations

from dit4sr.studies.block_figure import Facts, draw_legend, width_of
from dit4sr.studies.svg import FAINT, FILLS, Drawing

ORANGE = FILLS["trainable"][1]
CONTROL, BASE = 300.0, 800.0
SHOWN = 3


def draw_controlnet(facts: Facts) -> str:
    """The figure: the ControlNet at the left, the transformer at the right, residuals from one to the other. SVG."""
    fields = facts.transformer
    layers = int(fields["num_layers"])
    depth = -(-layers // 2)
    one_way = "one-way: the ControlNet reads the noisy latent and the LR latent, the transformer reads its residuals"
    picture = Drawing(1120, 1170, f"{facts.name} on {facts.backbone}", one_way)
    picture.text((28, 40), facts.name, size=24, bold=True, anchor="start")
    picture.text((28, 64), one_way, size=13, anchor="start", colour=FAINT)
    picture.panel(24, 84, 530, 960, f"ControlNet, {depth} MM-DiT blocks")
    picture.panel(590, 84, 506, 960, f"Transformer, {layers} MM-DiT blocks")

    picture.box((180, 150), 150, "noisy latent z_{t}", "x")
    picture.box((420, 150), 150, "LR latent", "l")
    picture.box((180, 214), 210, "patch embedding (copied)", "trainable", parameters=["pos_embed"])
    picture.box((420, 214), 210, "patch embedding, starts at 0", "trainable", parameters=["pos_embed_input"])
    picture.arrow([(180, 167), (180, 197)])
    picture.arrow([(420, 167), (420, 197)])
    picture.arrow([(180, 231), (180, 262), (CONTROL - 11, 262)])
    picture.arrow([(420, 231), (420, 262), (CONTROL + 11, 262)])
    picture.circle((CONTROL, 262), "+")
    picture.box((BASE, 150), 150, "noisy latent z_{t}", "x")
    picture.box((BASE, 214), 210, "patch embedding", "frozen")
    picture.arrow([(BASE, 167), (BASE, 197)])

    rows: list[int | None] = list(range(depth))
    if depth > SHOWN + 1:
        rows = [*range(SHOWN), None, depth - 1]
    spacing = 128
    above_control, above_base = 272.0, 231.0
    for n, i in enumerate(rows):
        y = 316 + n * spacing
        if i is None:
            for x in (CONTROL, BASE):
                picture.text((x, y + 18), "⋮", size=26, colour=FAINT)
            above_control = above_base = float(y + 40)
            continue
        above_base = draw_pair(picture, i, layers, y, above_control, above_base)
        above_control = y + 20
    picture.arrow([(BASE, above_base), (BASE, above_base + 26)])
    picture.box((BASE, above_base + 43), 210, "AdaLN, linear, unpatchify", "frozen")
    picture.arrow([(BASE, above_base + 60), (BASE, above_base + 82)])
    picture.box((BASE, above_base + 99), 150, "velocity ε − z", "x")
    picture.box(
        (CONTROL - 10, 990),
        400,
        "own embeddings of σ, pooled vector and text (copied)",
        "trainable",
        parameters=["time_text_embed", "context_embedder"],
        size=12,
    )
    picture.text(
        (606, 1032),
        f"Every block also reads the text C; width D = {width_of(fields)}.",
        size=12,
        anchor="start",
        colour=FAINT,
    )
    note = "The ControlNet's blocks are copies of the first ones; residual i is added after blocks 2i and 2i + 1."
    draw_legend(picture, facts, ("frozen", "trainable"), note)
    return picture.render()


def draw_pair(picture: Drawing, i: int, layers: int, y: float, above_control: float, above_base: float) -> float:
    """ControlNet block i, its output map, and the transformer's blocks 2i and 2i + 1; where the latter end."""
    picture.box((CONTROL, y), 200, f"block {i}  (copied)", "trainable", height=40, parameters=["transformer_blocks"])
    picture.arrow([(CONTROL, above_control), (CONTROL, y - 20)])
    picture.box((476, y + 28), 116, "linear, starts at 0", "trainable", parameters=["controlnet_blocks"], size=12)
    picture.arrow([(CONTROL + 100, y + 8), (476, y + 8), (476, y + 11)], colour=ORANGE, name="residual")
    for half, block in enumerate((2 * i, 2 * i + 1)):
        if block >= layers:
            continue
        top = y - 18 + 60 * half
        picture.box((BASE, top), 200, f"block {block}", "frozen", height=30)
        picture.arrow([(BASE, above_base), (BASE, top - 15)])
        above_base = top + 15
        if block == layers - 1:  # its text stream ends, and nothing is added after it
            picture.text((BASE + 112, top + 5), "nothing added", size=11, anchor="start", colour=FAINT)
            continue
        picture.arrow([(BASE, above_base), (BASE, top + 20)], head=False)
        picture.circle((BASE, top + 30), "+")
        picture.arrow(
            [(534, y + 28), (570, y + 28), (570, top + 30), (BASE - 11, top + 30)], colour=ORANGE, name="residual"
        )
        above_base = top + 40
    return above_base
