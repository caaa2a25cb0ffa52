"""Networks: the LR stream as data (:class:`LRStreamSpec`), DiT4SR and variants, the ControlNet baseline."""

from dit4sr.models.base import load_pretrained_base
from dit4sr.models.controlnet import SD3ControlNet
from dit4sr.models.dit4sr import DiT4SRTransformer2DModel
from dit4sr.models.released import load_released
from dit4sr.models.spec import LRStreamSpec

__all__ = ["DiT4SRTransformer2DModel", "LRStreamSpec", "SD3ControlNet", "load_pretrained_base", "load_released"]
