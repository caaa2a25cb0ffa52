"""Photos to make training patches and benchmarks of, and those that ship inside dependencies."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from dit4sr.data.images import Image8, UnreadableImage, read_image
from dit4sr.errors import UserError


@dataclass(frozen=True, eq=False)
class Photo:
    """One photo with what is known about it.

    ``image`` is (H, W, 3) uint8 RGB. Photos of one ``scene`` show the same thing and must never be parted
    between training and evaluation. ``weight`` is the photo's share of the patches, relative to others.
    ``file_digest`` is a hash of the file's bytes, "" where there is no such file.
    """

    name: str
    scene: str
    image: Image8 = field(repr=False)
    caption: str
    held_out: bool
    weight: float = 1.0
    licence: str = "unknown"
    file_digest: str = ""


@dataclass(frozen=True)
class _Embedded:
    """Where a photo lies inside a dependency: <package>/<file>."""

    package: str
    file: str
    scene: str
    caption: str
    licence: str
    held_out: bool = False
    weight: float = 1.0


# The astronomical and the two medical pictures are worth less to a restorer of everyday photographs.
_EMBEDDED = (
    _Embedded(
        "skimage",
        "data/astronaut.png",
        "astronaut",
        "A smiling astronaut in an orange space suit sits beside her helmet, in front of a flag and a model "
        "of the space shuttle.",
        "public domain (NASA)",
    ),
    _Embedded(
        "skimage",
        "data/motorcycle_left.png",
        "motorcycle",
        "A red motorcycle stands on the concrete floor of a garage, in front of shelves full of boxes.",
        "Middlebury 2014 stereo data set, as shipped in scikit-image (BSD-3-Clause)",
    ),
    _Embedded(
        "skimage",
        "data/motorcycle_right.png",
        "motorcycle",
        "A red motorcycle stands on the concrete floor of a garage, in front of shelves full of boxes.",
        "Middlebury 2014 stereo data set, as shipped in scikit-image (BSD-3-Clause)",
    ),
    _Embedded(
        "skimage",
        "data/hubble_deep_field.jpg",
        "hubble_deep_field",
        "Hundreds of distant galaxies of many colours and shapes lie scattered over black space.",
        "public domain (NASA)",
        weight=0.5,
    ),
    _Embedded(
        "skimage",
        "data/retina.jpg",
        "retina",
        "A medical picture of the back of a human eye shows red blood vessels that branch out over an orange retina.",
        "CC0 1.0 (Mikael Häggström)",
        weight=0.5,
    ),
    _Embedded(
        "skimage",
        "data/ihc.png",
        "immunohistochemistry",
        "A microscope picture of a stained tissue section shows brown glands between small blue cell nuclei.",
        "no known copyright restrictions (CMMI)",
        weight=0.5,
    ),
    _Embedded(
        "sklearn",
        "datasets/images/china.jpg",
        "china",
        "A Chinese tower with orange tiled roofs rises above green trees beside a lake under a pale sky.",
        "CC BY 2.0 (danielbuechele, Flickr)",
    ),
    _Embedded(
        "sklearn",
        "datasets/images/flower.jpg",
        "flower",
        "An orange dahlia with many petals blooms in front of dark green leaves.",
        "CC BY 2.0 (vultilion, Flickr)",
    ),
    _Embedded(
        "skimage",
        "data/chelsea.png",
        "chelsea",
        "A tabby cat with green eyes and long white whiskers looks past the camera.",
        "CC0 1.0 (Stefan van der Walt)",
        held_out=True,
    ),
    _Embedded(
        "skimage",
        "data/coffee.png",
        "coffee",
        "An espresso in a red and white cup stands on a red saucer with a spoon, on a wooden table.",
        "CC0 1.0 (Rachel Michetti)",
        held_out=True,
    ),
    _Embedded(
        "skimage",
        "data/rocket.jpg",
        "rocket",
        "A white rocket stands on its launch pad at dusk between tall lattice towers and bright lights.",
        "public domain (SpaceX)",
        held_out=True,
    ),
)
_DISTRIBUTIONS = {"skimage": "scikit-image", "sklearn": "scikit-learn"}
_KNOWN_GOOD = {"skimage": "0.26", "sklearn": "1.9"}


def embedded_photos() -> list[Photo]:
    """Read the colour photographs that ship inside scikit-image and scikit-learn; nothing is downloaded.

    Raises:
        UserError: a package is not installed, or its version does not ship a file.
    """
    return [_read_embedded(entry) for entry in _EMBEDDED]


def _read_embedded(entry: _Embedded) -> Photo:
    path = _package_folder(entry.package) / entry.file
    try:
        image = read_image(path)
    except (OSError, UnreadableImage) as error:
        wanted = f"{_DISTRIBUTIONS[entry.package]}=={_KNOWN_GOOD[entry.package]}.*"
        raise UserError(
            f"the installed {_DISTRIBUTIONS[entry.package]} {_version(entry.package)} has no readable "
            f'{entry.file}: pip install "{wanted}", which ships it.'
        ) from error
    return Photo(Path(entry.file).stem, entry.scene, image, entry.caption, entry.held_out, entry.weight, entry.licence)


def _package_folder(package: str) -> Path:
    spec = find_spec(package)  # finds the folder without importing the package
    if spec is None or not spec.submodule_search_locations:
        name = _DISTRIBUTIONS[package]
        raise UserError(f'the embedded photos need {name}: pip install "{name}=={_KNOWN_GOOD[package]}.*".')
    return Path(spec.submodule_search_locations[0])


def _version(package: str) -> str:
    try:
        return version(_DISTRIBUTIONS[package])
    except PackageNotFoundError:
        return "(unknown version)"
