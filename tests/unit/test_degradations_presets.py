"""The presets: values of the published table, strict construction, and the draws that follow from them."""

import dataclasses
import math
from collections import Counter

import numpy as np
import pytest
from omegaconf import OmegaConf

from dit4sr.data.degradations import PRESETS, DegradationPreset, draw_parameters, load_preset
from dit4sr.errors import UserError

# A row is usm; resize, noise, poisson, jpeg; probability of the second blur; the same of the second order;
# then blur sigma of both orders, beta of generalised kernels, beta of plateaus.
_STRONG = ((0.15, 1.5), (1, 30), (0.05, 3), (30, 95), 0.8, (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95))
_WIDE_BLUR = ((0.2, 3), (0.2, 1.5), (0.5, 4), (1, 2))
_MILD = ((0.3, 1.5), (1, 15), (0.05, 2), (60, 95), 0.5, (0.6, 1.2), (1, 12), (0.05, 1), (60, 100))
PUBLISHED = {
    "realesrgan": (True, *_STRONG, *_WIDE_BLUR),
    "seesr": (True, *_STRONG, *_WIDE_BLUR),
    "dit4sr": (True, *_STRONG, *_WIDE_BLUR),
    "stablesr": (True, *_MILD, (0.2, 1.5), (0.2, 1), (0.5, 2), (1, 1.5)),
    "osediff": (False, *_STRONG, *_WIDE_BLUR),
    "light": (False, *_MILD, *_WIDE_BLUR),
}
_COLUMNS = (
    *("usm_sharpen", "resize_range", "noise_range", "poisson_scale_range", "jpeg_range", "second_blur_prob"),
    *("resize_range2", "noise_range2", "poisson_scale_range2", "jpeg_range2"),
    *("blur_sigma", "blur_sigma2", "betag_range", "betap_range"),
)


def test_the_group_is_the_published_list():
    assert set(PRESETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_values_of_the_published_table(name):
    preset = load_preset(name)
    assert preset.name == name
    assert tuple(getattr(preset, column) for column in _COLUMNS) == PUBLISHED[name]
    assert (preset.betag_range2, preset.betap_range2) == (preset.betag_range, preset.betap_range)
    assert preset.resize_prob == (0.2, 0.7, 0.1) and preset.resize_prob2 == (0.3, 0.4, 0.3)
    assert preset.gaussian_noise_prob == preset.gaussian_noise_prob2 == 0.5
    assert preset.gray_noise_prob == preset.gray_noise_prob2 == 0.4
    assert preset.kernel_families == (
        *("iso", "aniso", "generalized_iso", "generalized_aniso", "plateau_iso", "plateau_aniso"),
    )
    assert preset.kernel_probs == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    assert preset.sinc_prob == preset.sinc_prob2 == 0.1 and preset.final_sinc_prob == 0.8
    assert preset.kernel_sizes == (7, 9, 11, 13, 15, 17, 19, 21)
    assert preset.resize_modes == ("area", "bilinear", "bicubic")


def test_a_preset_is_built_from_a_composed_config():
    preset = load_preset("stablesr")
    node = OmegaConf.create(dataclasses.asdict(preset))
    assert DegradationPreset.from_config(node) == preset


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"sinc_probability": 0.1}, "sinc_probability"),
        ({"jpeg_range": [0, 95]}, "jpeg_range"),
        ({"resize_range": [1.5, 0.15]}, "resize_range"),
        ({"kernel_probs": [0.5, 0.4]}, "kernel_probs"),
        ({"kernel_sizes": [8]}, "kernel_sizes"),
        ({"resize_modes": ["nearest"]}, "resize_modes"),
        ({"second_blur_prob": 1.5}, "second_blur_prob"),
        ({"usm_sharpen": "yes"}, "usm_sharpen"),
        ({"noise_range": None}, "noise_range"),
    ],
)
def test_bad_fields_are_refused_by_name(change, named):
    with pytest.raises(UserError, match=named):
        DegradationPreset.from_config(dataclasses.asdict(load_preset("dit4sr")) | change)


def test_a_missing_field_is_refused_by_name():
    config = dataclasses.asdict(load_preset("dit4sr"))
    del config["betag_range2"]
    with pytest.raises(UserError, match="missing betag_range2"):
        DegradationPreset.from_config(config)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(UserError, match="realesrgan"):
        load_preset("realesrgam")


def test_draws_follow_the_preset():
    preset, n = load_preset("realesrgan"), 4000
    draws = [draw_parameters(preset, seed, 256, 320) for seed in range(n)]

    def near(count, probability):
        # Five standard deviations of a binomial: fails by chance less than once in a million.
        return abs(count - n * probability) < 5 * math.sqrt(n * probability * (1 - probability))

    families = Counter(p.blur1.family for p in draws)
    assert near(families["sinc"], 0.1)
    for family, probability in zip(preset.kernel_families, preset.kernel_probs, strict=True):
        assert near(families[family], 0.9 * probability), family
    sizes = Counter(p.blur1.size for p in draws)
    assert all(near(sizes[size], 1 / 8) for size in preset.kernel_sizes)
    assert near(sum(p.blur2 is not None for p in draws), 0.8)
    assert near(sum(p.sinc is not None for p in draws), 0.8)
    assert near(sum(p.jpeg_last for p in draws), 0.5)
    for noise in ("noise1", "noise2"):
        assert near(sum(getattr(p, noise).kind == "gaussian" for p in draws), 0.5)
        assert near(sum(getattr(p, noise).gray for p in draws), 0.4)
    for stage in ("resize1", "resize2", "resize3"):
        modes = Counter(getattr(p, stage).mode for p in draws)
        assert all(near(modes[mode], 1 / 3) for mode in preset.resize_modes)
    assert near(sum(p.resize1.width > 320 for p in draws), 0.2)
    assert near(sum((p.resize1.height, p.resize1.width) == (256, 320) for p in draws), 0.1)
    assert near(sum(p.resize2.width > 80 for p in draws), 0.3 * 0.94)  # scales up to 1.0125 round down to 80
    assert all(256 * 0.15 - 1 <= p.resize1.height <= 256 * 1.5 for p in draws)
    assert all(64 * 0.3 - 1 <= p.resize2.height <= 64 * 1.2 for p in draws)
    assert all((p.resize3.height, p.resize3.width) == (64, 80) for p in draws)
    sigmas = [255 * p.noise1.strength for p in draws if p.noise1.kind == "gaussian"]
    assert 1 <= min(sigmas) < 1.5 and 29.5 < max(sigmas) <= 30 and abs(np.mean(sigmas) - 15.5) < 1
    assert {p.jpeg1 for p in draws} == set(range(30, 96))
    betas = np.array([p.blur1.beta for p in draws if p.blur1.family.startswith("generalized")])
    assert betas.min() >= 0.5 and betas.max() <= 4 and abs(np.mean(betas < 1) - 0.5) < 0.1
    sincs = [p.blur1 for p in draws if p.blur1.family == "sinc"]
    small, large = ([k.cutoff for k in sincs if (k.size < 13) == is_small] for is_small in (True, False))
    final = [p.sinc.cutoff for p in draws if p.sinc is not None]
    for cutoffs, lowest in ((small, math.pi / 3), (large, math.pi / 5), (final, math.pi / 3)):
        assert lowest <= min(cutoffs) < lowest + 0.1 and math.pi - 0.1 < max(cutoffs) <= math.pi
    isotropic = [p.blur1 for p in draws if p.blur1.family in ("iso", "generalized_iso", "plateau_iso")]
    assert all(k.sigma_x == k.sigma_y for k in isotropic)
    rotations = [p.blur1.rotation for p in draws if p.blur1.family == "aniso"]
    assert -math.pi <= min(rotations) < -3 and 3 < max(rotations) <= math.pi


def test_two_presets_at_one_seed_share_what_they_do_not_change():
    strong, mild = draw_parameters("realesrgan", 5, 64, 64), draw_parameters("light", 5, 64, 64)
    assert (strong.blur1, strong.jpeg_last, strong.sinc) == (mild.blur1, mild.jpeg_last, mild.sinc)
    assert strong.resize3 == mild.resize3 and strong.usm_sharpen != mild.usm_sharpen


@pytest.mark.parametrize("seed", [-1, -(2**40)])
def test_a_negative_seed_is_refused(seed):
    with pytest.raises(UserError, match="seed"):
        draw_parameters("light", seed, 64, 64)


GOLDEN = (
    True,
    ("iso", 7, 1.5004352174962505, 1.5004352174962505, 0.0, 0.0, 0.0),
    ("bicubic", 70, 70),
    ("poisson", False, 0.6318519228707795),
    64,
    None,
    ("area", 16, 16),
    ("gaussian", False, 0.060731509053063126),
    ("area", 16, 16),
    None,
    44,
    False,
)


def test_golden_draw():
    """The draws of a seed are part of what a run's seed means: they may not change with NumPy's version."""
    p = draw_parameters("dit4sr", 2**63 + 11, 64, 64)
    assert dataclasses.astuple(p) == GOLDEN
