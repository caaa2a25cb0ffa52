"""Flow matching: interpolation, shift, timestep density and the two loss forms."""

import math

import pytest
import torch

from dit4sr.flow import interpolate, latent_loss, logit_normal, shift_sigma, velocity_loss


def pair(batch: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    z, eps = torch.randn(2, batch, 3, 6, 10, generator=g).unbind(0)
    return z, eps, torch.rand(batch, generator=g)


def test_interpolation_runs_from_data_to_noise() -> None:
    z, eps, _ = pair()
    assert torch.equal(interpolate(z, eps, torch.zeros(4)), z)
    assert torch.equal(interpolate(z, eps, torch.ones(4)), eps)
    torch.testing.assert_close(interpolate(z, eps, torch.full((4,), 0.25)), 0.75 * z + 0.25 * eps)


def test_interpolation_takes_one_sigma_a_sample() -> None:
    z, eps, sigma = pair()
    expected = torch.stack([(1 - s) * a + s * b for a, b, s in zip(z, eps, sigma, strict=True)])
    torch.testing.assert_close(interpolate(z, eps, sigma), expected)
    torch.testing.assert_close(interpolate(z, eps, sigma[2]), (1 - sigma[2]) * z + sigma[2] * eps)


def test_velocity_is_the_derivative_of_the_path() -> None:
    z, eps, _ = (t.double() for t in pair())
    _, velocity = torch.func.jvp(
        lambda s: interpolate(z, eps, s), (torch.tensor(0.3).double(),), (torch.tensor(1.0).double(),)
    )
    torch.testing.assert_close(velocity, eps - z)


def test_the_losses_agree() -> None:
    z, eps, sigma = pair()
    velocity = torch.randn(z.shape, generator=torch.Generator().manual_seed(2))
    by_velocity = velocity_loss(velocity, z, eps, reduction="none")
    by_latent = latent_loss(velocity, z, eps, sigma, reduction="none")
    assert by_velocity.shape == by_latent.shape == (4,)
    torch.testing.assert_close(by_latent, sigma**2 * by_velocity)
    torch.testing.assert_close(velocity_loss(velocity, z, eps), by_velocity.mean())
    torch.testing.assert_close(latent_loss(velocity, z, eps, sigma), by_latent.mean())
    torch.testing.assert_close(by_velocity[1], ((velocity - (eps - z))[1] ** 2).mean())


def test_the_losses_gradients_agree() -> None:
    z, eps, sigma = pair(1)
    velocity = torch.zeros_like(z, requires_grad=True)
    (by_velocity,) = torch.autograd.grad(velocity_loss(velocity, z, eps), velocity)
    (by_latent,) = torch.autograd.grad(latent_loss(velocity, z, eps, sigma), velocity)
    torch.testing.assert_close(by_latent, sigma**2 * by_velocity)


def test_a_perfect_velocity_costs_nothing() -> None:
    z, eps, sigma = pair()
    assert velocity_loss(eps - z, z, eps) == 0
    assert latent_loss(eps - z, z, eps, sigma) < 1e-12
    # The direction matters: z − ε is as wrong as can be.
    assert velocity_loss(z - eps, z, eps) > 4


def test_losses_of_half_precision_predictions_are_float32() -> None:
    z, eps, sigma = pair()
    for loss in (
        velocity_loss((eps - z).bfloat16(), z, eps),
        latent_loss((eps - z).bfloat16(), z, eps, sigma),
    ):
        assert loss.dtype == torch.float32
        assert 0 < loss < 1e-3  # the rounding of the prediction and no more


def test_shift() -> None:
    u = torch.linspace(0, 1, 101, dtype=torch.float64)
    assert torch.equal(shift_sigma(u, 1.0), u)
    for shift in 2.0, 3.0:
        sigma = shift_sigma(u, shift)
        assert sigma[0] == 0 and sigma[-1] == 1
        assert (sigma.diff() > 0).all() and (sigma[1:-1] > u[1:-1]).all()
        # Shifting by 1/s undoes a shift by s, and shifts multiply.
        torch.testing.assert_close(shift_sigma(sigma, 1 / shift), u)
        torch.testing.assert_close(shift_sigma(sigma, 2.0), shift_sigma(u, 2 * shift))
    assert shift_sigma(torch.tensor(0.5), 3.0) == 0.75


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.5, 0.8)])
def test_logit_normal_quantiles(mean: float, std: float) -> None:
    """P(u < x) = Φ((logit x − m)/s), at the empirical quantiles of many draws."""
    u = logit_normal(torch.randn(200_000, generator=torch.Generator().manual_seed(0)), mean, std)
    assert u.min() > 0 and u.max() < 1
    for x in 0.1, 0.3, 0.5, 0.7, 0.9:
        expected = 0.5 * (1 + math.erf((math.log(x / (1 - x)) - mean) / std / math.sqrt(2)))
        assert float((u < x).float().mean()) == pytest.approx(expected, abs=5e-3)
