"""A benchmark's prompts, where a captioner makes or finds them in place of the benchmark's own."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit4sr.evaluation.benchmarks import Benchmark
    from dit4sr.prompts import Captions


def with_captions(benchmark: Benchmark, captions: Captions) -> Benchmark:
    """The benchmark with the captioner's prompts; as it is where the prompts are its own, or fixed.

    Raises:
        UserError: images lack captions, or the captioning model cannot be loaded.
    """
    if captions.fixed is not None or captions.from_files_beside:
        return benchmark

    from dit4sr.data.images import read_image
    from dit4sr.prompts.captions import Photo, described_file

    describes = captions.settings.describes
    photos = {
        image.name: Photo(described_file(describes, lq=image.lq, hq=image.hq), image.lq.name)
        for image in benchmark.images
    }
    captions.prepare(list(photos.values()), read_image)
    images = tuple(
        replace(image, prompt=captions.prompt_for(photos[image.name].path, photos[image.name].name))
        for image in benchmark.images
    )
    return replace(benchmark, images=images, prompts=captions.words)
