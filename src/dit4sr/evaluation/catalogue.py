"""Every metric there is, as rows of data: what it is called, which values are better, and the files it needs.

Names are pyiqa's, so that a number can be looked up; ``gradient_energy`` is this project's own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower", "one"]
"""Which values are better: high ones, low ones, or those near 1."""

Place = Literal["pyiqa", "checkpoints", "clip"]
"""Sub-folder of torch's hub folder: pyiqa's own files, torchvision's and OpenAI CLIP's."""


@dataclass(frozen=True)
class WeightFile:
    """A file that a metric reads: its name, and its folder below torch's hub folder."""

    name: str
    place: Place = "pyiqa"


@dataclass(frozen=True)
class Known:
    """A metric of the catalogue.

    Attributes:
        better: see :data:`Better`.
        digits: after the point, in tables.
        reference: whether it compares with the ground truth.
        variant: which of the published models or settings of that name it is.
        files: weights, all of them needed.
        least_side: pixels that both sides need.
        exact: computed on one CPU thread, so that neither the machine's cores nor a GPU change a digit.
        protocols: whether ``metrics.protocol`` applies: PSNR and SSIM.
        channel: on what it is computed, where no protocol says it.
        options: pyiqa's, beside its defaults.
    """

    better: Better
    digits: int
    reference: bool
    variant: str = ""
    files: tuple[WeightFile, ...] = ()
    least_side: int = 1
    exact: bool = False
    protocols: bool = False
    channel: str = "RGB"
    options: Mapping[str, Any] = field(default_factory=dict)


ALEXNET = WeightFile("alexnet-owt-7be5be79.pth", "checkpoints")
VGG16 = WeightFile("vgg16-397923af.pth", "checkpoints")
CLIP_RN50 = WeightFile("RN50.pt", "clip")
CLIP_B32 = WeightFile("ViT-B-32.pt", "clip")
CLIP_L14 = WeightFile("ViT-L-14.pt", "clip")
NIQE = WeightFile("niqe_modelparameters.mat")
INCEPTION = WeightFile("pt_inception-2015-12-05-6726825d.pth")


def _pixels(digits: int, better: Better = "higher", **changes: Any) -> Known:
    """Against a reference, from the pixels alone."""
    return Known(better, digits, reference=True, exact=True, **changes)


def _alone(better: Better, digits: int, variant: str, *files: WeightFile, **changes: Any) -> Known:
    """Without a reference."""
    return Known(better, digits, reference=False, variant=variant, files=files, **changes)


KNOWN: Mapping[str, Known] = {
    "psnr": _pixels(2, protocols=True),
    "ssim": _pixels(4, protocols=True, least_side=11, variant="Gaussian window 11, σ 1.5"),
    "gradient_energy": _pixels(3, "one", least_side=2),
    "ms_ssim": _pixels(4, channel="Y", least_side=176, variant="five scales"),
    "cw_ssim": _pixels(4, channel="Y", variant="level 4, 8 orientations"),
    "fsim": _pixels(4, variant="chromatic"),
    "vif": _pixels(4, channel="Y"),
    "gmsd": _pixels(4, "lower", channel="Y"),
    "nlpd": _pixels(4, "lower", channel="Y"),
    "vsi": _pixels(4),
    "mad": _pixels(2, "lower", channel="Y"),
    "lpips": Known("lower", 4, True, "AlexNet v0.1", (WeightFile("LPIPS_v0.1_alex-df73285e.pth"), ALEXNET), 32),
    "lpips-vgg": Known("lower", 4, True, "VGG v0.1", (WeightFile("LPIPS_v0.1_vgg-a78928a0.pth"), VGG16), 32),
    "dists": Known("lower", 4, True, "VGG16", (WeightFile("DISTS_weights-f5e65c96.pth"), VGG16), 32),
    "niqe": _alone("lower", 4, "original parameters, CUDA rounding", NIQE, least_side=96, exact=True, channel="Y"),
    "piqe": _alone("lower", 2, "", exact=True, channel="Y"),
    "brisque": _alone(
        "lower", 2, "LIVE", WeightFile("brisque_svm_weights.pth"), least_side=16, exact=True, channel="Y"
    ),
    "cnniqa": _alone("higher", 4, "KonIQ-10k", WeightFile("CNNIQA_koniq10k-e6f14c91.pth"), least_side=32),
    "musiq": _alone("higher", 2, "KonIQ-10k", WeightFile("musiq_koniq_ckpt-e95806b9.pth")),
    "maniqa-pipal": _alone("higher", 4, "PIPAL", WeightFile("MANIQA_PIPAL-ae6d356b.pth")),
    "maniqa": _alone("higher", 4, "KonIQ-10k", WeightFile("ckpt_koniq10k.pt")),
    "clipiqa": _alone("higher", 4, "CLIP RN50, ten prompts", CLIP_RN50),
    "clipiqa+": _alone(
        "higher", 4, "CLIP RN50, learned prompts", WeightFile("CLIP-IQA+_learned_prompts-603f3273.pth"), CLIP_RN50
    ),
    "clipiqa+_vitL14_512": _alone(
        "higher", 4, "CLIP ViT-L/14, fine-tuned at 512", WeightFile("CLIPIQA+_ViTL14_512-e66488f2.pth"), CLIP_L14
    ),
    "liqe": _alone("higher", 4, "KonIQ-10k", WeightFile("liqe_koniq.pt"), CLIP_B32, least_side=224),
    "liqe_mix": _alone("higher", 4, "six data sets", WeightFile("liqe_mix.pt"), CLIP_B32, least_side=224),
    "topiq_nr": _alone("higher", 4, "KonIQ-10k, ResNet-50", WeightFile("cfanet_nr_koniq_res50-9a73138b.pth")),
    "fid": Known("lower", 2, True, "Inception v3, 2048 features", (INCEPTION,)),
}

SET_METRICS = ("fid",)
"""Metrics of two sets of images: one value for the whole benchmark, none for an image."""
