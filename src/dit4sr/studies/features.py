"""The LR stream's features: captured by forward hooks, measured, and shown by principal components.

Legend of shapes: B batch, K image tokens, h×w = K the token grid, D width, F depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dit4sr.models import DiT4SRTransformer2DModel, SD3ControlNet
from dit4sr.tiles import TileSettings, gaussian_window, tile_starts

HIGH = 0.25
"""Cycles per token from which on a frequency counts as high: half the highest that the grid can hold."""

Features = dict[int, Tensor]
"""Depth → the LR stream's tokens on their grid, (h, w, D) float32."""


def depths_of(network: nn.Module) -> list[int]:
    """The depths at which the LR stream exists: 0 is its embedding, d the output of its d-th block.

    DiT4SR's stream ends inside its last block, so with N blocks the deepest is N − 1; the baseline's is its
    ControlNet's, whose every block gives one.
    """
    if isinstance(network, SD3ControlNet):
        return list(range(len(network.controlnet.transformer_blocks) + 1))
    assert isinstance(network, DiT4SRTransformer2DModel)
    return list(range(len(network.transformer_blocks)))


def _streams(network: nn.Module) -> tuple[nn.Module, nn.ModuleList]:
    """The part of the network that the LR stream runs through, and its blocks."""
    part: Any = network.controlnet if isinstance(network, SD3ControlNet) else network
    return part, part.transformer_blocks


@contextmanager
def captured(network: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Within the block every forward pass leaves the LR tokens by depth, (B, K, D), in the yielded dictionary.

    Read by forward hooks, which are removed at the end; the network is not changed. DiT4SR's image tokens are
    [X; L], of which L is taken; the ControlNet's stream is the sum of the noisy latent's and the LR latent's
    embeddings, and what its blocks make of it.
    """
    _, blocks = _streams(network)
    baseline = isinstance(network, SD3ControlNet)
    tokens: dict[int, Tensor] = {}

    def keep(depth: int, image: Tensor) -> None:
        tokens[depth] = (image if baseline else image.chunk(2, dim=1)[1]).detach().float()

    def before(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        keep(0, kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    def after(depth: int) -> Any:
        # DiT4SR's blocks return (image, text), diffusers' (text, image).
        return lambda module, args, output: keep(depth, output[1 if baseline else 0])

    handles = [blocks[0].register_forward_pre_hook(before, with_kwargs=True)]
    handles += [blocks[d - 1].register_forward_hook(after(d)) for d in depths_of(network) if d > 0]
    try:
        yield tokens
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def lr_features(
    network: nn.Module,
    z: Tensor,
    lr_latent: Tensor,
    timestep: Tensor,
    tokens: Tensor,
    pooled: Tensor,
    tile: TileSettings,
    depths: Sequence[int],
) -> Features:
    """The LR stream's features of one image at some depths; of a large one tile by tile, blended as velocities are.

    Args:
        z, lr_latent: (1, C, H, W).
        timestep: 1000σ, (1,).
        tokens, pooled: the prompt.
        tile: side and overlap in latent pixels.
        depths: of :func:`depths_of`.
    """
    patch: int = network.config.patch_size  # type: ignore[union-attr, assignment]
    height, width = z.shape[-2] // patch, z.shape[-1] // patch
    rows, columns = (tile_starts(side, tile.size, tile.overlap) for side in z.shape[-2:])
    total: Features = {}
    weight = torch.zeros(height, width, 1)
    with captured(network) as seen:
        for y in rows:
            for x in columns:
                part = (..., slice(y, y + tile.size), slice(x, x + tile.size))
                network(z[part], lr_latent[part], timestep, tokens, pooled, return_dict=False)
                top, left = -(-y // patch), -(-x // patch)
                h, w = z[part].shape[-2] // patch, z[part].shape[-1] // patch
                window = gaussian_window(h, w)[..., None]
                here = (slice(top, top + h), slice(left, left + w))
                weight[here] += window
                for depth in depths:
                    grid = seen[depth][0].unflatten(0, (h, w)).cpu()
                    total.setdefault(depth, torch.zeros(height, width, grid.shape[-1]))[here] += window * grid
    return {depth: total[depth] / weight for depth in depths}


def standardised(features: Tensor) -> Tensor:
    """(h, w, D) with mean 0 and deviation 1 over the grid in every channel; constant channels become 0."""
    centred = features - features.mean((0, 1))
    std = centred.std((0, 1), correction=0)
    return centred / torch.where(std > 1e-6 * std.max().clamp_min(1e-30), std, torch.inf)


def high_frequency_share(features: Tensor) -> float:
    """Share of the features' energy at :data:`HIGH` cycles per token or more, the mean over channels, in [0, 1].

    Each channel counts the same, however large its values. A Hann window keeps the grid's borders from counting as
    edges. White noise has about 0.80, a photograph's luma a few hundredths.

    Args:
        features: (h, w, D); an image of one channel is (h, w, 1).
    """
    h, w, _ = features.shape
    window = torch.outer(torch.hann_window(h, periodic=False), torch.hann_window(w, periodic=False))[..., None]
    x = standardised(features)
    x = x - (x * window).sum((0, 1)) / window.sum()
    power = torch.fft.fft2(x * window, dim=(0, 1)).abs().square()
    radius = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w)[None])
    per_channel, all_of = power[radius >= HIGH].sum(0), power.sum((0, 1))
    alive = all_of > 0
    return float((per_channel[alive] / all_of[alive]).mean()) if bool(alive.any()) else float("nan")


def gradient_magnitude(features: Tensor) -> Tensor:
    """(h, w, D) → (h, w): root of the summed squares of Sobel's gradients of the standardised channels."""
    x = standardised(features).permute(2, 0, 1)[:, None]
    sobel = torch.tensor([[1.0, 0, -1], [2, 0, -2], [1, 0, -1]]) / 8
    kernels = torch.stack([sobel, sobel.T])[:, None]
    gradients = F.conv2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), kernels)
    return gradients.square().sum((0, 1)).sqrt()


def edge_map(luma: Tensor, height: int, width: int) -> Tensor:
    """An image's edges on the token grid: Sobel's gradient magnitude at full size, averaged within each token.

    Args:
        luma: (H, W).
        height, width: of the grid.
    """
    gradient = gradient_magnitude(luma[..., None])
    return F.adaptive_avg_pool2d(gradient[None, None], (height, width))[0, 0]


def edge_alignment(features: Tensor, edges: Tensor) -> float:
    """Pearson's correlation of the features' gradient magnitude with the edges, both (h, w); NaN where one is flat."""
    a, b = gradient_magnitude(features).flatten(), edges.flatten()
    a, b = a - a.mean(), b - b.mean()
    product = a.norm() * b.norm()
    return float(a @ b / product) if product > 0 else float("nan")


def principal_components(features: Sequence[Tensor], luma: Tensor) -> list[Tensor]:
    """The three largest principal components as colours, shared by all depths.

    The components are those of all depths' tokens together, each depth centred and scaled to the same variance
    first, so one colour means one direction at every depth. A component's sign at the first depth is that in which
    it correlates with the image's luma; at each further depth that in which it correlates with the depth before.

    Args:
        features: by depth, each (h, w, D).
        luma: (h, w), the input on the same grid.

    Returns:
        By depth (h, w, 3) in [0, 1]; each component's 1st percentile at that depth is 0 and its 99th is 1.
    """
    flat = [(f - f.mean((0, 1))).flatten(0, 1) for f in features]
    flat = [f / f.square().mean().sqrt().clamp_min(1e-12) for f in flat]
    together = torch.cat(flat).double()
    _, vectors = torch.linalg.eigh(together.T @ together)
    basis = vectors.flip(1)[:, :3].float()
    if basis.shape[1] < 3:
        basis = F.pad(basis, (0, 3 - basis.shape[1]))
    before = luma.flatten()[:, None].expand(-1, 3)
    pictures = []
    for f, shape in zip(flat, (f.shape[:2] for f in features), strict=True):
        projected = f @ basis
        agreement = (projected * (before - before.mean(0))).sum(0)
        projected = projected * torch.where(agreement < 0, -1.0, 1.0)
        before = projected
        low, high = (torch.quantile(projected, q, dim=0) for q in (0.01, 0.99))
        colours = (projected - low) / (high - low).clamp_min(1e-12)
        pictures.append(colours.clamp(0, 1).unflatten(0, shape))
    return pictures
