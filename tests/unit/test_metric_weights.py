"""Metrics' weights: found where they are, read as tensors, reported where they are missing, and prefetched."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from tiny_checkpoint import picture

from dit4sr.evaluation import calibration, prefetch
from dit4sr.evaluation.catalogue import KNOWN, NIQE, WeightFile
from dit4sr.evaluation.metrics import MetricSet, build_metrics
from dit4sr.evaluation.weights import NIQE_ARCHIVE, WeightsFolder

CNNIQA = "CNNIQA_koniq10k-e6f14c91.pth"


def built(names: list[str], **changes: Any) -> MetricSet:
    return build_metrics({"names": names, "protocol": "ycbcr", "border": None, **changes})


def write_cnniqa(path: Path, seed: int = 0) -> torch.nn.Module:
    """Random weights of the smallest network that pyiqa has."""
    from pyiqa.archs import cnniqa_arch

    torch.manual_seed(seed)
    network = cnniqa_arch.CNNIQA(pretrained=None).eval()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"params": network.state_dict()}, path)
    return network


def niqe_parameters(path: Path) -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(36, 36))
    np.savez(path, mu_pris_param=rng.normal(size=(1, 36)), cov_pris_param=root @ root.T)


@pytest.mark.parametrize("place", ["", "pyiqa", "hub/pyiqa"])
def test_a_network_with_local_weights(tmp_path: Path, place: str) -> None:
    network = write_cnniqa(tmp_path / place / CNNIQA)
    (metric,) = built(["cnniqa"], weights_dir=str(tmp_path)).metrics
    image = picture(64, 96, 1)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
    with torch.no_grad():
        assert metric(image) == pytest.approx(float(network(tensor)), abs=1e-5)
    assert (metric.variant, metric.reference) == ("KonIQ-10k", False)


def test_torch_s_hub_folder_is_looked_into_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    assert [m.metric for m in built(["cnniqa"]).missing] == ["cnniqa"]
    write_cnniqa(tmp_path / "hub" / "pyiqa" / CNNIQA)
    assert built(["cnniqa"]).missing == ()


def test_what_is_missing_is_named_with_its_place_and_the_rest_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    found = built(["psnr", "lpips", "niqe", "clipiqa+_vitL14_512"], fid=True)
    assert [m.name for m in found.metrics] == ["psnr"]
    said = {m.metric: m.reason for m in found.missing}
    assert set(said) == {"lpips", "niqe", "clipiqa+_vitL14_512", "fid"}
    assert f"LPIPS_v0.1_alex-df73285e.pth into {tmp_path / 'hub/pyiqa'}" in said["lpips"]
    assert f"alexnet-owt-7be5be79.pth into {tmp_path / 'hub/checkpoints'}" in said["lpips"]
    assert f"ViT-L-14.pt into {tmp_path / 'hub/clip'}" in said["clipiqa+_vitL14_512"]
    assert f"niqe_modelparameters.mat into {tmp_path / 'hub/pyiqa'}" in said["niqe"]
    assert all("prefetch=true" in reason for reason in said.values())


def test_a_file_that_cannot_be_loaded_is_reported_as_that(tmp_path: Path) -> None:
    write_cnniqa(tmp_path / CNNIQA)
    whole = (tmp_path / CNNIQA).read_bytes()
    for broken in (whole[: len(whole) // 2], b"", b"<html>not found</html>"):
        (tmp_path / CNNIQA).write_bytes(broken)
        found = built(["psnr", "cnniqa"], weights_dir=str(tmp_path))
        assert [m.name for m in found.metrics] == ["psnr"]
        assert "cannot be loaded" in found.missing[0].reason
        assert "get it again" in found.missing[0].reason


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (Path(self.path),))

    def __init__(self, path: Path) -> None:
        self.path = str(path)


def test_code_in_a_weights_file_is_not_run(tmp_path: Path) -> None:
    torch.save({"params": Bomb(tmp_path / "ran")}, tmp_path / CNNIQA)
    assert "cannot be loaded" in built(["cnniqa"], weights_dir=str(tmp_path)).missing[0].reason
    assert not (tmp_path / "ran").exists()


def test_niqe_from_numpy_s_format_and_from_matlab_s(tmp_path: Path) -> None:
    from scipy.io import savemat

    image = np.clip(picture(192, 200, 1) + np.random.default_rng(0).normal(0, 5, (192, 200, 3)), 0, 255).astype(
        np.uint8
    )
    niqe_parameters(tmp_path / NIQE_ARCHIVE)
    values = [built(["niqe"], weights_dir=str(tmp_path)).metrics[0](image)]
    values.append(built(["niqe"], niqe_parameters=str(tmp_path / NIQE_ARCHIVE)).metrics[0](image))
    with np.load(tmp_path / NIQE_ARCHIVE) as a:
        savemat(tmp_path / "mine.mat", {"mu_prisparam": a["mu_pris_param"], "cov_prisparam": a["cov_pris_param"]})
    values.append(built(["niqe"], niqe_parameters=str(tmp_path / "mine.mat")).metrics[0](image))
    assert values == [values[0]] * 3
    assert np.isfinite(values[0])
    np.savez(tmp_path / NIQE_ARCHIVE, other=np.zeros(3))
    assert "get it again" in built(["niqe"], weights_dir=str(tmp_path)).missing[0].reason


def test_the_catalogue_s_files_are_those_that_pyiqa_asks_for() -> None:
    from pyiqa.archs import (
        brisque_arch,
        clip_model,
        clipiqa_arch,
        cnniqa_arch,
        dists_arch,
        fid_arch,
        inception,
        liqe_arch,
        lpips_arch,
        maniqa_arch,
        musiq_arch,
        niqe_arch,
        topiq_arch,
    )
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    urls = {
        "lpips": lpips_arch.default_model_urls["0.1_alex"],
        "lpips-vgg": lpips_arch.default_model_urls["0.1_vgg"],
        "dists": dists_arch.default_model_urls["url"],
        "niqe": niqe_arch.default_model_urls["niqe"],
        "brisque": brisque_arch.default_model_urls["url"],
        "cnniqa": cnniqa_arch.default_model_urls["koniq10k"],
        "musiq": musiq_arch.default_model_urls["koniq10k"],
        "maniqa-pipal": maniqa_arch.default_model_urls["pipal"],
        "maniqa": maniqa_arch.default_model_urls["koniq"],
        "clipiqa": clip_model._MODELS["RN50"],
        "clipiqa+": clipiqa_arch.default_model_urls["clipiqa+"],
        "clipiqa+_vitL14_512": clipiqa_arch.default_model_urls["clipiqa+_vitL14_512"],
        "liqe": liqe_arch.default_model_urls["koniq"],
        "liqe_mix": liqe_arch.default_model_urls["mix"],
        "topiq_nr": topiq_arch.default_model_urls["cfanet_nr_koniq_res50"],
        "fid": fid_arch.__dict__.get("FID_WEIGHTS_URL", getattr(inception, "FID_WEIGHTS_URL", "")),
    }
    assert set(urls) == {name for name, known in KNOWN.items() if known.files}
    for name, url in urls.items():
        assert unquote(url.rpartition("/")[2]) == KNOWN[name].files[0].name, name
        assert url == prefetch.url_of(KNOWN[name].files[0]) or KNOWN[name].files[0].place != "pyiqa"
    for name, known in KNOWN.items():
        if name in ("gradient_energy", "fid"):
            continue
        stated = DEFAULT_CONFIGS[name]
        assert (known.better == "lower") == stated.get("lower_better", False), name
        assert known.reference == (stated["metric_mode"] == "FR"), name


def test_a_name_with_a_plus_is_found_as_pyiqa_keeps_it(tmp_path: Path) -> None:
    file = KNOWN["clipiqa+"].files[0]
    folder = WeightsFolder(tmp_path, None)
    (tmp_path / file.name.replace("+", "%2B")).write_bytes(b"")
    assert folder.find(file) == tmp_path / "CLIP-IQA%2B_learned_prompts-603f3273.pth"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "published"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


def test_prefetching(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_cnniqa(tmp_path / "published" / CNNIQA)
    monkeypatch.setattr(prefetch, "url_of", lambda file: f"{server}/{file.name}")
    weights = tmp_path / "weights"
    weights.mkdir()
    config = {"names": ["psnr", "cnniqa"], "protocol": "ycbcr", "border": None, "weights_dir": str(weights)}
    assert prefetch.fetch(config) == 0
    assert [path.name for path in weights.iterdir()] == [CNNIQA]
    assert built(["cnniqa"], weights_dir=str(weights)).missing == ()
    assert prefetch.fetch(config) == 0
    assert "here already" in capsys.readouterr().out
    # One file more, that is not published: said, and what is here stays.
    assert prefetch.fetch({**config, "names": ["cnniqa", "musiq"]}) == 1
    said = capsys.readouterr().out
    assert "musiq_koniq_ckpt-e95806b9.pth (musiq): could not be fetched" in said
    assert f"put it into {weights}" in said
    assert [path.name for path in weights.iterdir()] == [CNNIQA]


def test_where_a_file_is_put() -> None:
    assert WeightsFolder(Path("/w"), None).target(WeightFile("a.pth", "clip")) == Path("/w/a.pth")
    assert WeightsFolder(None, None).target(NIQE).parts[-3:] == ("hub", "pyiqa", NIQE.name)


def test_calibration(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = {"names": ["psnr", "ssim@rgb_crop4", "gradient_energy", "gmsd", "cnniqa"], "protocol": "ycbcr"}
    write_cnniqa(tmp_path / CNNIQA)
    config = {**config, "border": None, "weights_dir": str(tmp_path)}
    assert calibration.calibrate(config, "cpu") == 0
    said = capsys.readouterr().out
    assert said.count("the same") == 4
    assert "cnniqa: " in said
    assert "no stored value" in said
    stored = calibration.stored()
    wrong = {**stored, "values": {**stored["values"], "gmsd": stored["values"]["gmsd"] * 1.01}}
    monkeypatch.setattr(calibration, "stored", lambda: wrong)
    assert calibration.calibrate(config, "cpu") == 1
    assert "gmsd: 0.08" in (said := capsys.readouterr().out)
    assert said.count("DIFFERENT") == 1
