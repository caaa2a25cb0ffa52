"""Second-order degradation of photos, the source of the low-quality training inputs."""

from dit4sr.data.degradations.device import degrade_batch
from dit4sr.data.degradations.parameters import DegradationParameters, draw_parameters
from dit4sr.data.degradations.presets import PRESETS, DegradationPreset, load_preset
from dit4sr.data.degradations.worker import degrade

__all__ = [
    "PRESETS",
    "DegradationParameters",
    "DegradationPreset",
    "degrade",
    "degrade_batch",
    "draw_parameters",
    "load_preset",
]
