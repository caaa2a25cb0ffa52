"""The σ schedule against diffusers, Euler against closed forms, guidance, and latent tiles."""

from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_sd3 import tiny_inputs, tiny_network
from torch import Tensor

from dit4sr.sampling import TiledNetwork, gaussian_window, sample_euler, sampling_sigmas, tile_starts

TEXT = {"encoder_hidden_states": torch.zeros(2, 5, 12), "pooled_projections": torch.zeros(2, 10)}
NEGATIVE = {f"negative_{k}": v + 1 for k, v in TEXT.items()}


def latent(height: int = 6, width: int = 10, seed: int = 0) -> Tensor:
    return torch.randn(2, 4, height, width, generator=torch.Generator().manual_seed(seed))


# The schedule


@pytest.mark.parametrize("shift", [3.0, 1.0, 2.0])
@pytest.mark.parametrize("steps", [1, 2, 8, 28, 40])
def test_sigmas_are_diffusers(steps: int, shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=shift)
    scheduler.set_timesteps(steps)
    sigmas = sampling_sigmas(steps, shift)
    assert sigmas.shape == (steps + 1,)
    torch.testing.assert_close(sigmas.float(), scheduler.sigmas, rtol=0, atol=1e-6)


def test_last_sigma_is_shifted_twice() -> None:
    sigmas = sampling_sigmas(40)
    assert float(sigmas[0]) == 1
    assert float(sigmas[-2]) == pytest.approx(0.0089, abs=5e-5)
    assert float(sigmas[-1]) == 0
    assert (sigmas.diff() < 0).all()


def test_a_later_start() -> None:
    sigmas = sampling_sigmas(10, first_sigma=0.6)
    assert float(sigmas[0]) == pytest.approx(0.6)
    assert (sigmas.diff() < 0).all()
    torch.testing.assert_close(sigmas[-2:], sampling_sigmas(40)[-2:])


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0},
        {"steps": 4, "first_sigma": 0},
        {"steps": 4, "first_sigma": 1.1},
        {"steps": 4, "first_sigma": 0.001},
    ],
)
def test_impossible_schedules_are_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="steps|first_sigma"):
        sampling_sigmas(**bad)


# Euler


@pytest.mark.parametrize("steps", [1, 2, 7, 40])
def test_a_point_mass_is_hit_exactly(steps: int) -> None:
    """For data that is always z0 the velocity is (z − z0)/σ: every Euler path is a straight line to z0."""
    z0 = latent(seed=1)

    def network(z: Tensor, lr: Tensor, timestep: Tensor, *text: Tensor, return_dict: bool) -> Tensor:
        return (z - z0) / (timestep / 1000).reshape(-1, 1, 1, 1)

    sample = sample_euler(network, latent(), **TEXT, steps=steps, guidance=1, noise=latent(seed=2))
    torch.testing.assert_close(sample, z0, rtol=1e-5, atol=1e-5)


def gaussian_network(mean: float, std: float) -> Any:
    """The exact velocity for data ~ N(mean, std²): E[ε − z | z_σ], both jointly Gaussian with z_σ."""

    def network(z: Tensor, lr: Tensor, timestep: Tensor, *text: Tensor, return_dict: bool) -> Tensor:
        sigma = (timestep.double() / 1000).reshape(-1, 1, 1, 1)
        variance = (1 - sigma) ** 2 * std**2 + sigma**2
        centred = z - (1 - sigma) * mean
        data = mean + (1 - sigma) * std**2 / variance * centred
        noise = sigma / variance * centred
        return noise - data

    return network


def test_a_gaussian_is_sampled() -> None:
    """The exact flow takes noise n to mean + std·n; Euler's error is of first order in the step."""
    mean, std = 0.7, 0.3
    noise = torch.randn(4, 4, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    errors = []
    for steps in 100, 200, 400:
        sample = sample_euler(
            gaussian_network(mean, std), torch.zeros_like(noise), **TEXT, steps=steps, guidance=1, noise=noise
        )
        errors.append(float((sample - (mean + std * noise)).abs().max()))
    assert errors[-1] < 0.02
    for coarse, fine in zip(errors, errors[1:], strict=False):
        assert coarse / fine == pytest.approx(2, rel=0.15)
    assert float(sample.mean()) == pytest.approx(mean, abs=0.01)
    assert float(sample.std()) == pytest.approx(std, abs=0.01)


def test_starting_from_lr() -> None:
    """The start is (1−σ)·LR + σ·noise; where LR is the clean latent already, nothing moves it."""
    lr, noise, seen = latent(seed=1), latent(seed=2), []

    def network(z: Tensor, lr: Tensor, timestep: Tensor, *text: Tensor, return_dict: bool) -> Tensor:
        seen.append((z, float(timestep[0])))
        return noise - lr

    sample = sample_euler(network, lr, **TEXT, steps=4, guidance=1, noise=noise, start="lr", first_sigma=0.4)
    torch.testing.assert_close(seen[0][0], 0.6 * lr + 0.4 * noise)
    assert seen[0][1] == pytest.approx(400)
    torch.testing.assert_close(sample, lr, rtol=1e-5, atol=1e-5)


def test_starting_from_lr_at_sigma_one_is_starting_from_noise() -> None:
    starts = {}
    for start in "noise", "lr":

        def network(z: Tensor, *arguments: Tensor, return_dict: bool, start: str = start) -> Tensor:
            starts.setdefault(start, z)
            return z

        sample_euler(network, latent(), **TEXT, steps=2, guidance=1, noise=latent(seed=2), start=start)
    assert torch.equal(starts["noise"], starts["lr"])


def test_impossible_starts_are_refused() -> None:
    with pytest.raises(ValueError, match="choose noise or lr"):
        sample_euler(gaussian_network(0, 1), latent(), **TEXT, start="middle")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first sigma is 1"):
        sample_euler(gaussian_network(0, 1), latent(), **TEXT, first_sigma=0.5)


def test_noise_comes_from_the_generator() -> None:
    def sample(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample_euler(gaussian_network(0, 1), latent(), **TEXT, steps=2, guidance=1, generator=generator)

    assert torch.equal(sample(1), sample(1))
    assert not torch.equal(sample(1), sample(2))


def test_callback_sees_every_step() -> None:
    seen: list[tuple[int, Tensor]] = []
    sample = sample_euler(
        gaussian_network(0, 1),
        latent(),
        **TEXT,
        steps=3,
        guidance=1,
        callback=lambda i, z: seen.append((i, z)),
    )
    assert [i for i, _ in seen] == [0, 1, 2]
    assert torch.equal(seen[-1][1], sample)


# Guidance


class Recorder:
    """A network whose velocity is its pooled text's first number, and which counts its calls."""

    def __init__(self) -> None:
        self.batches: list[int] = []

    def __call__(
        self,
        z: Tensor,
        lr: Tensor | None,
        timestep: Tensor,
        tokens: Tensor,
        pooled: Tensor,
        return_dict: bool,
    ) -> Tensor:
        assert lr is not None
        assert len(z) == len(lr) == len(timestep) == len(tokens) == len(pooled)
        # The two halves must agree on which text goes with which pooled vector.
        assert torch.equal(tokens[:, 0, 0], pooled[:, 0])
        self.batches.append(len(z))
        return pooled[:, 0].reshape(-1, 1, 1, 1).expand_as(z)


@pytest.mark.parametrize("w", [0.0, 1.0, 3.5, 8.0])
def test_guidance(w: float) -> None:
    """v⁻ + w (v⁺ − v⁻), one forward a step; over σ from 1 to 0 a constant velocity v moves z by −v."""
    network, noise = Recorder(), latent(seed=2)
    positive = {k: v + 2 for k, v in TEXT.items()}
    sample = sample_euler(network, latent(), **positive, **NEGATIVE, steps=5, guidance=w, noise=noise)
    torch.testing.assert_close(sample, noise - (1 + w * (2 - 1)))
    assert network.batches == [2 if w == 1 else 4] * 5


def test_without_a_negative_prompt_there_is_no_guidance() -> None:
    network, noise = Recorder(), latent(seed=2)
    positive = {k: v + 2 for k, v in TEXT.items()}
    sample = sample_euler(network, latent(), **positive, steps=3, guidance=8, noise=noise)
    torch.testing.assert_close(sample, noise - 2)
    assert network.batches == [2] * 3


# Tiles


@pytest.mark.parametrize("tile", [4, 7, 16])
@pytest.mark.parametrize("overlap", [0, 1, 3])
def test_tiles_cover_everything_and_overlap_enough(tile: int, overlap: int) -> None:
    for length in range(1, 60):
        starts = tile_starts(length, tile, overlap)
        assert starts[0] == 0
        assert starts == sorted(set(starts))
        covered = {i for s in starts for i in range(s, min(s + tile, length))}
        assert covered == set(range(length))
        if length > tile:
            assert starts[-1] == length - tile
            assert all(b - a <= tile - overlap for a, b in zip(starts, starts[1:], strict=False))
        else:
            assert starts == [0]


@pytest.mark.parametrize(("tile", "overlap"), [(8, 8), (8, 9), (8, -1)])
def test_impossible_tiles_are_refused(tile: int, overlap: int) -> None:
    with pytest.raises(ValueError, match="overlap"):
        tile_starts(20, tile, overlap)


def test_blending_weights() -> None:
    window = gaussian_window(8, 12)
    assert window.shape == (8, 12)
    assert (window > 0).all()
    assert torch.equal(window, window.flip(0)) and torch.equal(window, window.flip(1))
    assert (window[:4].diff(dim=0) > 0).all() and (window[:, :6].diff(dim=1) > 0).all()
    assert gaussian_window(9, 9)[4, 4] == 1


@torch.no_grad()
def test_a_latent_of_one_tile_is_untiled() -> None:
    network, inputs = tiny_network(), tiny_inputs(6, 10)
    assert torch.equal(inputs.call(TiledNetwork(network, tile=10, overlap=4)), inputs.call(network))  # type: ignore[arg-type]


@pytest.mark.parametrize(("height", "width"), [(8, 8), (6, 30), (30, 6), (14, 26), (9, 17)])
@pytest.mark.parametrize("overlap", [0, 4])
def test_a_constant_velocity_stays_constant(height: int, width: int, overlap: int) -> None:
    tiled = TiledNetwork(lambda z, *rest, return_dict: torch.full_like(z, 2), tile=8, overlap=overlap, batch=3)
    z = latent(height, width)
    velocity = tiled(z, z, torch.ones(2), torch.zeros(2, 5, 12), torch.zeros(2, 10))
    assert torch.equal(velocity, torch.full_like(z, 2))


def pointwise(z: Tensor, lr: Tensor, timestep: Tensor, tokens: Tensor, pooled: Tensor, return_dict: bool) -> Tensor:
    """A velocity at each point from that point's own z and LR, and from its own sample's condition."""
    condition = timestep + 10 * tokens[:, 0, 0] + 100 * pooled[:, 0]
    return z.sin() + 3 * lr + condition.reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("batch", [1, 3, 16])
def test_a_pointwise_network_is_unchanged_by_tiles(batch: int) -> None:
    """Tiles are cut from z and LR at the same places, put back there, and keep their sample's condition."""
    z, lr = latent(14, 26, seed=1), latent(14, 26, seed=2)
    timestep, tokens, pooled = torch.tensor([0.1, 0.9]), torch.zeros(2, 5, 12), torch.zeros(2, 10)
    tokens[1], pooled[1] = 0.2, 0.3
    tiled = TiledNetwork(pointwise, tile=8, overlap=4, batch=batch)(z, lr, timestep, tokens, pooled)
    expected = pointwise(z, lr, timestep, tokens, pooled, return_dict=False)
    torch.testing.assert_close(tiled, expected, rtol=1e-5, atol=1e-5)


def test_tiles_are_run_in_batches_of_bounded_size() -> None:
    network = Recorder()
    z = latent(14, 26)
    TiledNetwork(network, tile=8, overlap=4, batch=5)(
        z, z, torch.ones(2), TEXT["encoder_hidden_states"], TEXT["pooled_projections"]
    )
    tiles = 2 * len(tile_starts(14, 8, 4)) * len(tile_starts(26, 8, 4))
    assert sum(network.batches) == tiles
    assert max(network.batches) == 5


def test_blending_is_the_weighted_mean_of_the_tiles() -> None:
    """Two tiles on a line: in the overlap, each by its own Gaussian weight."""
    z = torch.arange(12.0).reshape(1, 1, 1, 12).expand(1, 1, 8, 12).contiguous()

    def first_value(z: Tensor, *rest: Any, return_dict: bool) -> Tensor:
        return z[..., :1, :1].expand_as(z)

    velocity = TiledNetwork(first_value, tile=8, overlap=4)(
        z, None, torch.ones(1), torch.zeros(1, 5, 12), torch.zeros(1, 10)
    )
    g = gaussian_window(8, 8)[0]
    expected = torch.tensor([0.0] * 4 + [float(4 * g[i] / (g[i] + g[i + 4])) for i in range(4)] + [4.0] * 4)
    torch.testing.assert_close(velocity[0, 0, 3], expected)


@torch.no_grad()
def test_sampling_through_tiles_with_guidance() -> None:
    """A point mass again, on a latent of many tiles: every tile's path leads to its part of z0."""
    z0 = latent(14, 26, seed=1)

    def network(z: Tensor, lr: Tensor, timestep: Tensor, *text: Tensor, return_dict: bool) -> Tensor:
        return (z - lr) / (timestep / 1000).reshape(-1, 1, 1, 1)

    tiled = TiledNetwork(network, tile=8, overlap=4, batch=7)
    sample = sample_euler(tiled, z0, **TEXT, **NEGATIVE, steps=6, guidance=8, noise=latent(14, 26, seed=2))
    torch.testing.assert_close(sample, z0, rtol=1e-4, atol=1e-4)
