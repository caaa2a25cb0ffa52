"""The metrics of an evaluation, each with the protocol and the variant that its number depends on.

Images are uint8 (H, W, 3), RGB. Values are pyiqa's. PSNR and SSIM of this family's papers are those of protocol
``ycbcr``; the other protocols differ by up to 1.6 dB on the same files, so every row of a table states its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dit4sr.errors import UserError
from dit4sr.evaluation.catalogue import KNOWN, SET_METRICS, Better, Known
from dit4sr.evaluation.fidelity import Image8, check_sizes, gradient_energy, luma, psnr_y, ssim_y

__all__ = [
    "PROTOCOLS",
    "Better",
    "Image8",
    "Metric",
    "MetricSet",
    "Missing",
    "Protocol",
    "build_metrics",
    "gradient_energy",
    "luma",
    "psnr_y",
    "pyiqa_version",
    "ssim_y",
]

PEAK = "255"
"""Data range of PSNR and SSIM under every protocol: the peak of 8-bit images, also for luma in [16, 235]."""


@dataclass(frozen=True)
class Protocol:
    """On what PSNR and SSIM are computed.

    Attributes:
        channel: Y or RGB.
        border: pixels cut off each side before measuring.
        options: pyiqa's, that choose the channel.
    """

    channel: str
    border: int
    options: Mapping[str, Any]


_YCBCR = {"test_y_channel": True, "color_space": "ycbcr"}
_YIQ = {"test_y_channel": True, "color_space": "yiq"}
_RGB = {"test_y_channel": False}

PROTOCOLS: Mapping[str, Protocol] = {
    # BT.601 luma in [16, 235]: OSEDiff's and DiT4SR's published numbers.
    "ycbcr": Protocol("Y", 0, _YCBCR),
    # SeeSR's: the same after cutting the upscaling factor's pixels off.
    "ycbcr_crop4": Protocol("Y", 4, _YCBCR),
    # Full-range luma, pyiqa's default: 20·log10(255/219) = 1.32 dB lower.
    "yiq": Protocol("Y", 0, _YIQ),
    "yiq_crop4": Protocol("Y", 4, _YIQ),
    "rgb": Protocol("RGB", 0, _RGB),
    "rgb_crop4": Protocol("RGB", 4, _RGB),
}

DEFAULT = "default"
"""The protocol's name in rows of metrics that have but one."""


@dataclass(frozen=True)
class Metric:
    """A metric with its protocol.

    Attributes:
        name: in tables and files: pyiqa's, and ``name@protocol`` where it is not the run's protocol.
        better: see :data:`dit4sr.evaluation.catalogue.Better`.
        digits: after the point, in tables.
        protocol, channel, border, variant, data_range: as stated in every row.
        reference: whether the ground truth is needed.
        least_side: pixels that both sides of an image need, its border included.
        score: (restored, ground truth or None), uint8 (H, W, 3) of one size → the value.
    """

    name: str
    better: Better
    digits: int
    protocol: str
    channel: str
    border: int
    score: Callable[[Image8, Image8 | None], float] = field(repr=False, compare=False)
    reference: bool = True
    variant: str = ""
    data_range: str = ""
    least_side: int = 1

    def __call__(self, restored: Image8, truth: Image8 | None = None) -> float:
        """The value for one image, its border cut off first.

        Raises:
            ValueError: for images of different sizes, too small ones, or without the ground truth it needs.
        """
        if self.reference:
            if truth is None:
                raise ValueError(f"{self.name} needs a ground truth")
            check_sizes(restored, truth)
        if min(restored.shape[:2]) < self.least_side:
            height, width = restored.shape[:2]
            raise ValueError(f"{width}×{height}: {self.name} needs {self.least_side} pixels a side")
        if b := self.border:
            restored = restored[b:-b, b:-b]
            truth = None if truth is None else truth[b:-b, b:-b]
        return self.score(restored, truth if self.reference else None)

    def facts(self) -> dict[str, Any]:
        """What the number depends on, as the summary states it."""
        names = ("better", "protocol", "channel", "border", "variant", "data_range", "reference", "digits")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Missing:
    """A metric that cannot be computed here.

    Attributes:
        metric: its name.
        reason: which file it wants and where to put it, or what is wrong with the file.
        files: the files' names.
    """

    metric: str
    reason: str
    files: tuple[str, ...] = ()


@dataclass(frozen=True)
class MetricSet:
    """The metrics of a run.

    Attributes:
        metrics: of single images, in the config's order.
        missing: those whose weights are not here.
        of_sets: FID, where it was asked for and its weights are here.
    """

    metrics: tuple[Metric, ...]
    missing: tuple[Missing, ...] = ()
    of_sets: tuple[str, ...] = ()


def build_metrics(config: Mapping[str, Any], device: str = "cpu") -> MetricSet:
    """The metrics of configs/metrics, in its order; networks are loaded, and those without weights reported.

    Args:
        config: ``names``, ``protocol``, ``border`` and, optionally, ``weights_dir``, ``niqe_parameters`` and ``fid``.
        device: of the metrics that are networks.

    Raises:
        UserError: for an unknown metric or protocol, a negative border, or where pyiqa is not installed.
    """
    wanted = parse_names(config)
    pyiqa_version()
    from dit4sr.evaluation.weights import MissingWeights, WeightsFolder, create, create_network

    folder = WeightsFolder.from_config(config)
    metrics, missing, of_sets = [], [], []
    for name, base, protocol in wanted:
        known = KNOWN[base]
        try:
            if base in SET_METRICS:
                create_network(base, known, folder, device)
                of_sets.append(name)
            else:
                metrics.append(_metric(name, base, known, protocol, config["border"], folder, device, create))
        except MissingWeights as error:
            missing.append(Missing(name, str(error), error.files))
    return MetricSet(tuple(metrics), tuple(missing), tuple(of_sets))


def parse_names(config: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, metric, protocol) of each metric that a config names; nothing is loaded.

    Raises:
        UserError: see :func:`build_metrics`.
    """
    default, border, names = config["protocol"], config["border"], config["names"]
    if isinstance(names, str):
        names = [names]
    if not isinstance(names, list | tuple) or not names:
        raise UserError(f"metrics.names={names}: give a list such as [psnr,ssim]")
    if border is not None and (not isinstance(border, int) or isinstance(border, bool) or border < 0):
        raise UserError(
            f"metrics.border={border}: give the number of pixels to cut off, 0 or more, or null for the protocol's"
        )
    wanted: list[tuple[str, str, str]] = []
    for name in [*names, *(["fid"] if config.get("fid") and "fid" not in names else [])]:
        base, at, protocol = str(name).partition("@")
        protocol = protocol if at else default
        if base not in KNOWN:
            raise UserError(f"metrics: unknown {base}; there are {', '.join(KNOWN)}")
        if protocol not in PROTOCOLS:
            raise UserError(f"metrics.protocol={protocol!r}: choose one of {', '.join(PROTOCOLS)}")
        if at and not KNOWN[base].protocols:
            raise UserError(f"metrics: {name}: {base} has one protocol; leave @{protocol} out")
        shown = base if protocol == default else f"{base}@{protocol}"
        if shown in (w[0] for w in wanted):
            raise UserError(f"metrics.names has {shown} twice")
        wanted.append((shown, base, protocol))
    return wanted


def _metric(
    name: str,
    base: str,
    known: Known,
    protocol: str,
    border: int | None,
    folder: Any,
    device: str,
    create: Callable[..., Callable[[Image8, Image8 | None], float]],
) -> Metric:
    named = PROTOCOLS[protocol]
    cut = named.border if border is None else border
    facts: dict[str, Any] = {"reference": known.reference, "variant": known.variant}
    if base == "gradient_energy":
        score: Callable[[Image8, Image8 | None], float] = _gradient_energy
        return Metric(name, known.better, known.digits, "ycbcr", "Y", cut, score, least_side=2 + 2 * cut, **facts)
    if known.protocols:
        score = create(base, known, folder, device, named.options)
        return Metric(
            name,
            known.better,
            known.digits,
            protocol,
            named.channel,
            cut,
            score,
            least_side=known.least_side + 2 * cut,
            data_range=PEAK,
            **facts,
        )
    score = create(base, known, folder, device, known.options)
    return Metric(
        name, known.better, known.digits, DEFAULT, known.channel, 0, score, least_side=known.least_side, **facts
    )


def _gradient_energy(restored: Image8, truth: Image8 | None) -> float:
    assert truth is not None
    return gradient_energy(restored, truth)


def pyiqa_version() -> str:
    """The version of pyiqa.

    Raises:
        UserError: where it is not installed.
    """
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pyiqa")
    except PackageNotFoundError as error:
        raise UserError('the metrics need pyiqa: pip install "pyiqa>=0.1.16" "setuptools<81"') from error
