"""What makes a photo or a patch worth training on."""

from __future__ import annotations

import cv2
import numpy as np

from dit4sr.data.images import Image8
from dit4sr.data.photos import Photo
from dit4sr.data.preparation.sources import digest


def mean_gradient(patch: Image8) -> float:
    """Mean magnitude of the Sobel gradient of the luma in [0, 1], by the 3×3 kernels with weights 1, 2, 1.

    Grey is 0; a sharp edge between black and white is 4 beside the edge. DiT4SR's preparation crops again until
    it exceeds 0.2.
    """
    luma = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255
    return float(cv2.magnitude(cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)).mean())


def content_digest(photo: Photo, by: str) -> str:
    """Hash by which duplicates are found, 32 hex digits; "" where they are kept.

    ``pixels``: of the decoded picture, so that another compression without loss, or other metadata, is the same
    photo. ``bytes``: of the file.
    """
    if by == "keep":
        return ""
    if by == "bytes" and photo.file_digest:
        return photo.file_digest
    return digest(repr(photo.image.shape).encode() + np.ascontiguousarray(photo.image).tobytes())
