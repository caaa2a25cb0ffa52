"""Studies with checkpoints, from the command line's settings to their files, on tiny random networks."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from studies_folders import NAMES, write_benchmark
from tiny_checkpoint import compose_verb, load, write_checkpoint

from dit4sr.provenance import write_run_config
from dit4sr.studies import controlnet_comparison, fidelity, prompt_source

QUICK = ["benchmark=folder", "device=cpu", "sampler.steps=3", "sampler.shift=3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """pairs/, and runs of the two networks."""
    folder = tmp_path_factory.mktemp("studies")
    write_benchmark(folder / "pairs")
    for model in ("dit4sr", "sd3_controlnet"):
        overrides = (f"model={model}", "backbone.transformer.num_layers=4", "backbone.tile.overlap=4")
        write_checkpoint(folder / model / "checkpoints" / "last.ckpt", *overrides)
        write_run_config(folder / model, compose_verb("train", f"model={model}", "out=unused"))
    return folder


def settings(made: Path, out: Path, *more: str) -> list[str]:
    return [*QUICK, f"benchmark.lq={made}/pairs/lq", f"benchmark.hq={made}/pairs/hq", f"out={out}", *more]


def read(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def test_controlnet_comparison(made: Path, tmp_path: Path) -> None:
    # By default the newest checkpoints under paths.outputs; a tile of 12 makes four of the 16 latent pixels.
    arguments = settings(made, tmp_path, f"paths.outputs={made}", "images=b", "at=0,2", "backbone.tile.size=12")
    assert controlnet_comparison.main(arguments) == 0
    rows = read(tmp_path / "features.csv")
    found = {(r["model"], r["sampling_step"], r["depth"]) for r in rows if r["depth"]}
    expected = {("dit4sr", s, str(d)) for s in "02" for d in range(4)}
    expected |= {("sd3_controlnet", s, str(d)) for s in "02" for d in range(3)}
    assert found == expected
    assert {r["model"] for r in rows if not r["depth"]} == {"LR input", "ground truth"}
    for row in rows:
        assert 0 <= float(row["high_frequency_share"]) <= 1 and -1 <= float(row["edge_alignment"]) <= 1
    assert Image.open(tmp_path / "features_b.png").width > 800
    table = (tmp_path / "table.md").read_text()
    assert "last.ckpt at step 7" in table and "means over 1 image (b)" in table

    # The results are those that evaluate.py would write: the hooks and the states changed nothing.
    from dit4sr.restoration.loading import load_restorer
    from dit4sr.restoration.noise import noise_seed

    config = compose_verb(
        "evaluate", *QUICK, "backbone.tile.size=12", "acceleration=none", f"ckpt={made}/dit4sr", "out=unused"
    )
    restorer, _ = load_restorer(config, {"backbone.tile.size", "sampler.steps", "sampler.shift"})
    expected_image = restorer.restore(load(made / "pairs" / "lq" / "b.png"), "", seed=noise_seed(0, "b"))
    np.testing.assert_array_equal(load(tmp_path / "restored" / "dit4sr" / "b.png"), expected_image)


def test_states_are_those_the_network_saw(made: Path) -> None:
    from dit4sr.restoration.loading import load_restorer
    from dit4sr.sampling import sampling_sigmas
    from dit4sr.studies.trajectory import follow

    for start in ("noise", "lr"):
        first = 1.0 if start == "noise" else 0.7
        extra = [f"sampler.start={start}", f"sampler.first_sigma={first}", "sampler.guidance=1", "acceleration=none"]
        config = compose_verb("evaluate", *QUICK, *extra, f"ckpt={made}/dit4sr", "out=unused")
        restorer, _ = load_restorer(config, {"sampler.start"})
        seen = []
        hook = restorer.network.register_forward_pre_hook(  # type: ignore[attr-defined]
            lambda module, args, seen=seen: seen.append((args[0].clone(), args[1].clone(), float(args[2][0])))
        )
        path = follow(restorer, load(made / "pairs" / "lq" / "a.png"), "", seed=5, upscale=4.0)
        hook.remove()
        assert len(seen) == len(path.states) == len(path.sigmas) == 3
        for (z, lr, timestep), state, sigma in zip(seen, path.states, path.sigmas, strict=True):
            torch.testing.assert_close(z.float(), state)
            torch.testing.assert_close(lr.float(), path.lr_latent.float())
            assert timestep == pytest.approx(1000 * sigma, rel=1e-5)
        assert path.sigmas == pytest.approx(sampling_sigmas(3, 3.0, first)[:-1].tolist())


def test_mistakes_of_the_comparison(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases = {
        f"baseline={made}/dit4sr": "is of model dit4sr: give baseline=",
        "at=3": "steps 0 to 2",
        "images=z": "has no z",
        "depths=1": "give 2 or more",
        f"ckpt={made}/nothing": "no checkpoint",
    }
    for wrong, said in cases.items():
        arguments = settings(made, tmp_path, f"paths.outputs={made}", wrong)
        assert controlnet_comparison.main(arguments) == 2
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1
    assert controlnet_comparison.main(settings(made, tmp_path, f"paths.outputs={tmp_path}/none")) == 2
    error = capsys.readouterr().err
    assert "sd3_controlnet" in error and "give baseline=" in error


def write_prompts(folder: Path, captions: dict[str, str]) -> Path:
    folder.mkdir(parents=True)
    for name, text in captions.items():
        (folder / f"{name}.txt").write_text(text)
    return folder


def test_prompt_source_from_folders(made: Path, tmp_path: Path) -> None:
    lq = write_prompts(tmp_path / "p_lq", dict.fromkeys(NAMES, "A red cup. Waves on water!"))
    hq = write_prompts(tmp_path / "p_hq", dict.fromkeys(NAMES, "a red cup.\nTwo <b>cats</b>."))
    out = tmp_path / "out"
    arguments = settings(made, out, f"ckpt={made}/dit4sr", f"lq_prompts={lq}", f"hq_prompts={hq}", "images=a,c")
    assert prompt_source.main([*arguments, "sampler.guidance=4"]) == 0
    rows = read(out / "per_image.csv")
    assert {(r["image"], r["source"]) for r in rows} == {(i, s) for i in "ac" for s in ("none", "lq", "hq")}
    captions = (out / "captions.md").read_text()
    assert "**Waves on water!**" in captions and "**A red cup" not in captions
    assert "**Two \\<b\\>cats\\</b\\>.**" in captions and "(the null prompt)" in captions
    table = (out / "table.md").read_text().splitlines()
    assert len({line.count("|") for line in table if line.startswith("|")}) == 1
    by_source = [load(out / "restored" / s / "a.png") for s in ("none", "lq", "hq")]
    assert not np.array_equal(by_source[0], by_source[1]) and not np.array_equal(by_source[1], by_source[2])
    assert (out / "prompts" / "lq" / "a.txt").read_text().strip() == "A red cup. Waves on water!"
    assert Image.open(out / "comparison.png").width > 400
    # What it wrote can be given again.
    again = tmp_path / "again"
    arguments = settings(made, again, f"ckpt={made}/dit4sr", f"lq_prompts={out}/prompts/lq", "images=a")
    assert prompt_source.main([*arguments, "sampler.guidance=4"]) == 0
    np.testing.assert_array_equal(load(again / "restored" / "lq" / "a.png"), by_source[1])


def test_prompt_source_with_a_captioner_and_a_cleaner(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    from spandrel.architectures.Compact import CompactArch
    from tiny_llava import write_tiny_llava

    # Spandrel builds its networks from weights alone: Real-ESRGAN's small architecture, 8 channels wide, ×4.
    widths = [(8, 3), (8, 8), (8, 8), (48, 8)]
    state = {f"body.{2 * n}.weight": torch.randn(*width, 3, 3) / 9 for n, width in enumerate(widths)}
    state |= {f"body.{2 * n}.bias": torch.zeros(width[0]) for n, width in enumerate(widths)}
    state |= {f"body.{2 * n + 1}.weight": torch.full((8,), 0.2) for n in range(3)}
    assert CompactArch().detect(state)
    torch.save(state, tmp_path / "cleaner.pth")
    llava = write_tiny_llava(tmp_path / "llava")
    out = tmp_path / "out"
    more = [f"captioner.model={llava}", "captioner.max_new_tokens=5", "captioner.cache=null", "images=a,b"]
    arguments = settings(made, out, f"ckpt={made}/dit4sr", f"cleaner={tmp_path}/cleaner.pth", "captioner=llava", *more)
    assert prompt_source.main([*arguments, "captioner.drop_optics=false"]) == 0
    assert {r["source"] for r in read(out / "per_image.csv")} == {"none", "lq", "hq", "cleaned"}
    assert load(out / "cleaned" / "a.png").shape == (64, 64, 3)
    for source in ("lq", "hq", "cleaned"):
        assert (out / "prompts" / source / "b.txt").is_file()


def test_mistakes_of_prompt_source(made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    some = write_prompts(tmp_path / "p", {"a": "A cup."})
    cases = {
        (): "there is no prompt to compare with none",
        ("sources=sky",): "choose among none, lq",
        ("sources=none,cleaned",): "cleaned_prompts=<folder>",
        (f"lq_prompts={tmp_path}/absent",): "is no folder",
        (f"lq_prompts={some}", "images=a,b"): "has no b.txt",
        (f"lq_prompts={some}", "count=0"): "count=0",
    }
    for wrong, said in cases.items():
        arguments = settings(made, tmp_path / "out", f"ckpt={made}/dit4sr", *wrong)
        assert prompt_source.main(arguments) == 2, wrong
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1


def test_fidelity_reads_what_evaluate_writes(made: Path, tmp_path: Path) -> None:
    from dit4sr.evaluation.run import run

    overrides = [o for o in settings(made, tmp_path / "evaluation", f"ckpt={made}/dit4sr") if o]
    config = compose_verb("evaluate", *overrides, "benchmark.name=realsr")
    assert run(config, {"sampler.steps"}) == 0
    assert fidelity.main([f"evaluations={tmp_path}/evaluation", f"out={tmp_path}/out"]) == 0
    rows = read(tmp_path / "out" / "table.csv")
    assert {r["method"] for r in rows if r["source"] == "measured here"} == {"bicubic", "dit4sr"}
    assert (tmp_path / "out" / "comparison_realsr.png").is_file()
