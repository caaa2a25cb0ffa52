"""The files that metrics read: where they are looked for, and how pyiqa is made to read them.

pyiqa looks in a folder that is fixed when it is imported, downloads what is missing, and unpickles what it finds.
Here the files of a metric are found first, linked into a folder of their own, and read by tensors-only loading;
an evaluation never downloads.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import numpy as np
import torch

from dit4sr.errors import UserError
from dit4sr.evaluation.catalogue import NIQE, Known, WeightFile
from dit4sr.evaluation.fidelity import Image8
from dit4sr.evaluation.niqe import UNIT, niqe

NIQE_ARCHIVE = "niqe_pris_params.npz"
"""NIQE's parameters as NumPy arrays mu_pris_param and cov_pris_param, as other packages distribute them."""

NIQE_KEYS = {"mu_pris_param": "mu_prisparam", "cov_pris_param": "cov_prisparam"}
"""Array of the .npz → variable of the .mat."""


class MissingWeights(Exception):  # noqa: N818
    """A metric's weights are not here, or cannot be loaded; the message says what to put where."""

    def __init__(self, message: str, files: tuple[str, ...]) -> None:
        super().__init__(message)
        self.files = files


@dataclass(frozen=True)
class WeightsFolder:
    """Where weights are looked for.

    Attributes:
        folder: ``metrics.weights_dir``, in which a file may lie as it is or in the sub-folders of torch's hub
            folder; None for the hub folder alone ($TORCH_HOME/hub, ~/.cache/torch/hub).
        niqe: NIQE's parameters, .mat or .npz.
    """

    folder: Path | None
    niqe: Path | None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """From configs/metrics.

        Raises:
            UserError: where a folder or file that it names does not exist.
        """
        folder, niqe = (
            Path(v).expanduser() if (v := config.get(k)) else None for k in ("weights_dir", "niqe_parameters")
        )
        if folder is not None and not folder.is_dir():
            raise UserError(f"metrics.weights_dir={folder} is no folder: give the one with the metrics' weights")
        if niqe is not None and (not niqe.is_file() or niqe.suffix not in (".mat", ".npz")):
            raise UserError(f"metrics.niqe_parameters={niqe}: give a file {NIQE.name} or {NIQE_ARCHIVE}")
        return cls(folder, niqe)

    def find(self, file: WeightFile) -> Path | None:
        """The file, or None."""
        # pyiqa keeps a file under the name that it has in its URL, where + is %2B.
        names = list(dict.fromkeys((file.name, quote(file.name))))
        if file == NIQE:
            if self.niqe is not None:
                return self.niqe
            names.append(NIQE_ARCHIVE)
        places: list[Path] = []
        if self.folder is not None:
            parts = ("", file.place, f"hub/{file.place}", f"torch/hub/{file.place}")
            places = [self.folder / part for part in parts]
        for place in [*places, hub_folder() / file.place]:
            for name in names:
                if (place / name).is_file():
                    return place / name
        return None

    def target(self, file: WeightFile) -> Path:
        """Where a file that is not here belongs."""
        return (self.folder if self.folder is not None else hub_folder() / file.place) / file.name

    def need(self, files: tuple[WeightFile, ...]) -> dict[WeightFile, Path]:
        """All of these files.

        Raises:
            MissingWeights: naming those that are not here.
        """
        found = {file: self.find(file) for file in files}
        if lacking := [file for file, path in found.items() if path is None]:
            wanted = " and ".join(f"{file.name} into {self.target(file).parent}" for file in lacking)
            raise MissingWeights(
                f"its weights are not here: put {wanted}, or run python evaluate.py prefetch=true where there is "
                "a network",
                tuple(file.name for file in lacking),
            )
        return {file: path for file, path in found.items() if path is not None}


def hub_folder() -> Path:
    """torch's hub folder, below which pyiqa, torchvision and CLIP keep their weights."""
    return Path(torch.hub.get_dir())


def create(
    name: str, known: Known, folder: WeightsFolder, device: str, options: Mapping[str, Any]
) -> Callable[[Image8, Image8 | None], float]:
    """A metric of pyiqa as a function of (restored, ground truth or None), uint8 (H, W, 3) → value.

    Raises:
        MissingWeights: a file is not here or cannot be loaded.
        UserError: where pyiqa cannot be imported.
    """
    used = "cpu" if known.exact else device
    metric = create_network(name, known, folder, used, options)
    if name == "niqe":
        return partial(_niqe, metric)
    return partial(_score, metric, torch.device(used), known.exact)


def create_network(
    name: str, known: Known, folder: WeightsFolder, device: str, options: Mapping[str, Any] | None = None
) -> Any:
    """A metric of pyiqa as it is; see :func:`create`."""
    files = folder.need(known.files)
    found = tuple(sorted((f.place, f.name, str(path), path.stat().st_mtime_ns) for f, path in files.items()))
    return _created(name, found, device, tuple(sorted((options or {}).items())))


@cache
def _created(
    name: str, files: tuple[tuple[str, str, str, int], ...], device: str, options: tuple[tuple[str, Any], ...]
) -> Any:
    """The metric itself, once a process."""
    pyiqa = import_pyiqa()
    names = tuple(file for _, file, _, _ in files)
    with _staged({(place, file): Path(path) for place, file, path, _ in files}):
        arguments = dict(options)
        try:
            # It tells on the terminal of every file that it loads.
            with contextlib.redirect_stdout(io.StringIO()):
                return pyiqa.create_metric(name, device=torch.device(device), **arguments)
        except UserError:
            raise
        except Exception as error:
            if not files:
                raise
            paths = " or ".join(path for _, _, path, _ in files)
            said = " ".join(str(error).split())[:160]
            raise MissingWeights(
                f"{paths} cannot be loaded ({type(error).__name__}: {said}): get it again", names
            ) from error


def _score(metric: Any, device: torch.device, exact: bool, restored: Image8, truth: Image8 | None) -> float:
    images = [
        torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)[None])).to(device).float() * UNIT
        for image in (restored, truth)
        if image is not None
    ]
    with torch.inference_mode(), _one_thread() if exact else contextlib.nullcontext():
        return float(metric(*images))


def _niqe(metric: Any, restored: Image8, truth: Image8 | None) -> float:
    with torch.inference_mode(), _one_thread():
        return niqe(metric.net, restored)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def import_pyiqa() -> Any:
    """pyiqa, quiet.

    Raises:
        UserError: where it cannot be imported.
    """
    try:
        import pyiqa  # late: it takes seconds, and only evaluation needs it
    except ImportError as error:
        raise UserError(f'pyiqa cannot be imported ({error}): pip install "pyiqa>=0.1.16" "setuptools<81"') from error
    logging.getLogger("pyiqa").setLevel(logging.WARNING)  # it tells of every metric that it makes
    return pyiqa


@contextlib.contextmanager
def _staged(files: Mapping[tuple[str, str], Path]) -> Iterator[None]:
    """pyiqa reads these files, tensors only, from a folder of their own, and can download nothing."""
    import urllib.request

    import timm
    from pyiqa.archs import liqe_arch
    from pyiqa.utils import download_util

    def no_download(url: Any, *args: Any, **kwargs: Any) -> Any:
        raise OSError(f"{os.path.basename(str(url))} is wanted too, or the file there is another one")

    def load_tensors(*args: Any, **kwargs: Any) -> Any:
        return load(*args, **{**kwargs, "weights_only": True})

    def untrained(*args: Any, **kwargs: Any) -> Any:
        # Every parameter is then overwritten by the metric's own checkpoint, which is loaded strictly.
        return create_model(*args, **{**kwargs, "pretrained": False})

    def fitting(self: Any, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        # pyiqa passes over names that a network does not have: another file would leave it with random weights.
        if self.state_dict().keys().isdisjoint(state):
            raise ValueError("none of its tensors is one of the network's")
        return load_state(self, state, *args, **kwargs)

    load, create_model, load_state = torch.load, timm.create_model, torch.nn.Module.load_state_dict
    with tempfile.TemporaryDirectory(prefix="dit4sr-metrics-") as temporary, contextlib.ExitStack() as stack:
        hub = Path(temporary)
        (hub / "pyiqa").mkdir()
        for (place, name), path in files.items():
            (hub / place).mkdir(exist_ok=True)
            if path.suffix == ".npz":
                _write_mat(path, hub / place / name)
            else:
                for alias in {name, quote(name)}:
                    (hub / place / alias).symlink_to(path.resolve())
        for owner, name, value in (
            (download_util, "DEFAULT_CACHE_DIR", str(hub / "pyiqa")),
            (liqe_arch, "DEFAULT_CACHE_DIR", str(hub / "pyiqa")),
            (torch.hub, "_hub_dir", str(hub)),
            (download_util, "download_url_to_file", no_download),
            (torch.hub, "download_url_to_file", no_download),
            (urllib.request, "urlopen", no_download),
            (torch, "load", load_tensors),
            (timm, "create_model", untrained),
            (torch.nn.Module, "load_state_dict", fitting),
        ):
            stack.enter_context(_replaced(owner, name, value))
        yield


@contextlib.contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _write_mat(archive: Path, mat: Path) -> None:
    """NIQE's parameters from NumPy's format to the one that pyiqa reads."""
    from scipy.io import savemat

    try:
        with np.load(archive, allow_pickle=False) as arrays:
            parameters = {theirs: arrays[ours] for ours, theirs in NIQE_KEYS.items()}
    except (OSError, ValueError, KeyError) as error:
        raise MissingWeights(
            f"{archive} has no arrays {' and '.join(NIQE_KEYS)}: get it again", (NIQE.name,)
        ) from error
    if [parameters[k].size for k in NIQE_KEYS.values()] != [36, 36 * 36]:
        raise MissingWeights(f"{archive}: NIQE has 36 features: get it again", (NIQE.name,))
    savemat(mat, parameters)
