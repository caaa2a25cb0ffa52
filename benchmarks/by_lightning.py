"""Training as the verb does it: Lightning, shards on the disk, workers, guards and monitor."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import lightning
import torch
from configs import named
from loading import data_module, shards_of_photos
from measuring import Report
from training_step import random_training_network

from dit4sr.prompts import HashingTextEncoder
from dit4sr.studies.counting import random_autoencoder
from dit4sr.training.data_report import DataReport
from dit4sr.training.guards import FiniteGradients, LossSpikes
from dit4sr.training.module import DiT4SRModule
from dit4sr.training.trainer import build_monitor


def end_to_end(report: Report, arguments: argparse.Namespace, steps: int) -> None:
    """Training by Lightning from shards: photos are read, degraded by workers and encoded; text is given."""
    model, backbone = named("model", arguments.model), named("backbone", arguments.backbone)
    training = named("training", arguments.backbone) | {"gradient_checkpointing": False}
    training["compile"] = False if arguments.no_compile else "blocks"
    text, batch = backbone["text_encoder"], arguments.batch or 8
    with tempfile.TemporaryDirectory() as folder:
        shards = shards_of_photos(Path(folder) / "shards", backbone["crop"] + 128)
        data = data_module(shards, crop=backbone["crop"], batch=batch, workers=arguments.workers)
        autoencoder = random_autoencoder(backbone, report.device)
        module = DiT4SRModule(
            random_training_network(model, backbone, report.device),
            autoencoder,
            HashingTextEncoder(text["tokens"], text["width"], text["pooled_width"]),
            training,
            steps=steps,
            seed=0,
            identity={},
        )
        every, accelerator = max(1, steps // 3), "gpu" if report.device.startswith("cuda") else "cpu"
        settings = {"log_every_n_steps": every, "max_steps": steps, "precision": training["precision"]}
        settings |= {"peak_flops": arguments.peak, "accelerator": accelerator, "devices": 1}
        run = {"trainer": settings, "backbone": backbone, "model": model, "training": training}
        monitor = build_monitor(run | {"data": {"batch_size": batch}}, Path(folder))
        callbacks = [FiniteGradients(3, Path(folder)), LossSpikes(Path(folder)), DataReport(every), monitor]
        trainer = lightning.Trainer(
            max_steps=steps,
            accelerator=accelerator,
            devices=[torch.device(report.device).index or 0] if accelerator == "gpu" else 1,
            precision=training["precision"],
            gradient_clip_val=training["gradient_clip"],
            log_every_n_steps=every,
            callbacks=[*callbacks, monitor.last],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data)
    values = monitor.latest
    how = "compiled blocks, " if training["compile"] else ""
    mfu, memory = (values.get(name, float("nan")) for name in ("train/mfu", "speed/memory_gib"))
    report.say(
        f"By Lightning from shards, {arguments.workers} workers, the autoencoder encoding both images, {how}the last "
        f"{every} of {steps} steps: {values['speed/samples_per_second']:.1f} samples/s, data wait "
        f"{100 * values['speed/data_wait']:.2f} %, MFU {100 * mfu:.1f} % (the autoencoder's work is not counted), "
        f"{memory:.1f} GiB.\n"
    )
