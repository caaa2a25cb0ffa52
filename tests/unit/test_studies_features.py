"""The LR stream's features: what the hooks read, the measures, and the principal components."""

import math
from typing import Any

import pytest
import torch
from tiny_sd3 import DIT4SR, SPECS, Inputs, tiny_controlnet, tiny_inputs, tiny_network
from torch import Tensor, nn

from dit4sr.studies.features import (
    captured,
    depths_of,
    edge_alignment,
    edge_map,
    high_frequency_share,
    lr_features,
    principal_components,
)
from dit4sr.tiles import TileSettings

WHOLE = TileSettings(size=16, overlap=4)


def features_of(network: nn.Module, inputs: Inputs, tile: TileSettings = WHOLE) -> dict[int, Tensor]:
    one = {name: getattr(inputs, name)[:1] for name in ("z", "lr", "timestep", "tokens", "pooled")}
    return lr_features(network, *one.values(), tile, depths_of(network))  # type: ignore[arg-type]


def test_depths() -> None:
    assert depths_of(tiny_network(num_layers=3)) == [0, 1, 2]  # the stream ends inside the last block
    assert depths_of(tiny_controlnet(num_layers=3)) == [0, 1, 2]  # two blocks of a ControlNet, and its embedding


@pytest.mark.parametrize("spec", SPECS)
def test_the_embedding_and_the_first_block_of_dit4sr(spec: str) -> None:
    network, inputs = tiny_network(SPECS[spec]), tiny_inputs()
    found = features_of(network, inputs)
    embedded = network.pos_embed(inputs.lr[:1])
    torch.testing.assert_close(found[0], embedded[0].unflatten(0, (3, 5)))
    both = torch.cat([network.pos_embed(inputs.z[:1]), embedded], dim=1)
    text = network.context_embedder(inputs.tokens[:1])
    temb = network.time_text_embed(inputs.timestep[:1], inputs.pooled[:1])
    image, _ = network.transformer_blocks[0](both, text, temb, 2, (3, 5), 1.0)
    torch.testing.assert_close(found[1], image[0, 15:].unflatten(0, (3, 5)))


def test_the_baseline_stream_is_its_controlnets() -> None:
    network, inputs = tiny_controlnet(), tiny_inputs()
    found, part = features_of(network, inputs), network.controlnet
    start = part.pos_embed(inputs.z[:1]) + part.pos_embed_input(inputs.lr[:1])
    torch.testing.assert_close(found[0], start[0].unflatten(0, (3, 5)))
    text = part.context_embedder(inputs.tokens[:1])
    temb = part.time_text_embed(inputs.timestep[:1], inputs.pooled[:1])
    _, image = part.transformer_blocks[0](hidden_states=start, encoder_hidden_states=text, temb=temb)
    torch.testing.assert_close(found[1], image[0].unflatten(0, (3, 5)))


@pytest.mark.parametrize("build", [tiny_network, tiny_controlnet])
def test_hooks_leave_the_network_as_it_was(build: Any) -> None:
    network, inputs = build(), tiny_inputs()
    before = inputs.call(network)
    with captured(network) as seen:
        torch.testing.assert_close(inputs.call(network), before, rtol=0, atol=0)
        assert sorted(seen) == depths_of(network)
    with pytest.raises(RuntimeError), captured(network):
        raise RuntimeError
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_tiles_are_put_together_where_they_belong() -> None:
    """At depth 0 a token depends on its own patch and its place in the tile alone."""
    network = tiny_network(DIT4SR)
    network.pos_embed.pos_embed.zero_()
    inputs = tiny_inputs(height=14, width=10)
    tiled = features_of(network, inputs, TileSettings(size=8, overlap=4))
    torch.testing.assert_close(tiled[0], features_of(network, inputs)[0])
    assert tiled[1].shape == (7, 5, 16) and not torch.allclose(tiled[1], features_of(network, inputs)[1])


def wave(period: float, size: int = 32) -> Tensor:
    x = torch.arange(size, dtype=torch.float32)
    return torch.sin(2 * math.pi * x / period)[None, :, None].expand(size, size, 1)


def test_high_frequency_share_of_known_features() -> None:
    assert high_frequency_share(wave(2.5)) > 0.95
    assert high_frequency_share(wave(10)) < 0.05
    # 1 − π/16 of the frequencies are high.
    assert high_frequency_share(torch.randn(64, 64, 64)) == pytest.approx(1 - math.pi / 16, abs=0.01)
    # Each channel counts the same, whatever its scale; a constant one is left out.
    mixed = torch.cat([1000 * wave(2.5), wave(10), torch.full((32, 32, 1), 7.0)], dim=-1)
    assert high_frequency_share(mixed) == pytest.approx(0.5, abs=0.03)
    assert math.isnan(high_frequency_share(torch.ones(8, 8, 3)))


def test_edge_alignment_of_known_features() -> None:
    image = torch.zeros(64, 64)
    image[16:48, 20:44] = 1
    edges = edge_map(image, 16, 16)
    assert edges.shape == (16, 16)
    coarse = image.unflatten(0, (16, 4)).unflatten(2, (16, 4)).mean((1, 3))
    aligned = edge_alignment(torch.stack([coarse, -3 * coarse], -1), edges)
    shifted = edge_alignment(coarse.roll(6, 1)[..., None], edges)
    noise = edge_alignment(torch.randn(16, 16, 8), edges)
    assert aligned > 0.8 and aligned > shifted + 0.4 and abs(noise) < 0.3
    assert math.isnan(edge_alignment(torch.ones(16, 16, 2), edges))


def test_components_are_shared_and_their_signs_follow_the_image() -> None:
    luma = wave(16)[..., 0].contiguous()
    direction = torch.randn(6)
    direction /= direction.norm()
    noise = [0.01 * torch.randn(32, 32, 6) for _ in range(3)]
    # The same direction carries the image at three depths: upright, negated, and at another scale and offset.
    features = [
        luma[..., None] * direction + noise[0],
        -luma[..., None] * direction + noise[1],
        50 * luma[..., None] * direction + 9 + noise[2],
    ]
    pictures = principal_components(features, luma)
    for picture in pictures:
        assert picture.shape == (32, 32, 3) and picture.min() >= 0 and picture.max() <= 1
        correlation = torch.corrcoef(torch.stack([picture[..., 0].flatten(), luma.flatten()]))[0, 1]
        assert correlation > 0.95
    # Negating everything changes nothing: the sign comes from the image.
    torch.testing.assert_close(principal_components([-f for f in features], luma)[0][..., 0], pictures[0][..., 0])
