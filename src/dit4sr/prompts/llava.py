"""Captions by an image-text-to-text model such as LLaVA-1.5 (arXiv 2310.03744), through stock transformers."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from dit4sr.errors import UserError
from dit4sr.files import write_atomically
from dit4sr.prompts.identity import folder_digest
from dit4sr.prompts.optics import drop_optics
from dit4sr.prompts.sources import first_line, local_folder, quiet_transformers

if TYPE_CHECKING:
    import torch

SETTING = "captioner.model"
TEMPLATE = "USER: {image}\n{prompt} ASSISTANT:"
"""LLaVA-1.5's own, for a processor that brings none."""


@dataclass(frozen=True)
class Generation:
    """What a raw caption depends on beside the model and the image.

    Attributes:
        prompt: what the model is asked.
        max_new_tokens: of an answer.
        temperature: 0 takes the likeliest token each time; above, tokens are drawn.
        seed: of the draws.
        dtype: of the weights; auto is bfloat16 on a GPU and float32 elsewhere.
    """

    prompt: str
    max_new_tokens: int
    temperature: float
    seed: int
    dtype: str


class LlavaCaptioner:
    """Describes images in batches; the model is loaded for the first image whose caption is not on disk.

    Raw answers are kept by image content, model and settings, so that no image is described twice; sentences
    about optics are dropped after that.

    Args:
        folder: of the model: config.json, safetensors, processor.
        generation: see the class.
        batch_size: images described at once.
        filter_optics: whether to drop sentences about optics, see :mod:`dit4sr.prompts.optics`.
        cache: folder of the raw answers; None keeps none.
        device: where to compute; auto is a GPU where there is one.
    """

    def __init__(
        self,
        folder: Path,
        generation: Generation,
        *,
        batch_size: int = 8,
        filter_optics: bool = True,
        cache: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        self.folder, self.generation, self.batch_size = folder, generation, batch_size
        self.filter_optics, self.cache, self.device = filter_optics, cache, str(device)
        self._model: Any = None
        self._processor: Any = None
        self._identity: str | None = None

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], device: torch.device | str = "cpu", *, local_files_only: bool = False
    ) -> Self:
        """Build from configs/captioner/llava.yaml.

        Raises:
            UserError: a bad value, or no such model.
        """
        for name in ("max_new_tokens", "batch_size"):
            if int(config[name]) < 1:
                raise UserError(f"captioner.{name}={config[name]}: give 1 or more")
        if config["dtype"] not in ("auto", "float32", "bfloat16", "float16"):
            raise UserError(f"captioner.dtype={config['dtype']}: choose auto, float32, bfloat16 or float16")
        if float(config["temperature"]) < 0:
            raise UserError(f"captioner.temperature={config['temperature']}: give 0 or more")
        folder = local_folder(
            config["model"], SETTING, local_files_only=bool(config["local_files_only"]) or local_files_only
        )
        if not (folder / "config.json").is_file():
            raise UserError(
                f"{SETTING}={config['model']} has no config.json: give the folder of an image-text-to-text model"
            )
        if not any(folder.glob("*.safetensors")):
            raise UserError(f"{SETTING}={config['model']} holds no *.safetensors, the only format that is read")
        generation = Generation(
            str(config["prompt"]),
            int(config["max_new_tokens"]),
            float(config["temperature"]),
            int(config["seed"]),
            str(config["dtype"]),
        )
        return cls(
            folder,
            generation,
            batch_size=int(config["batch_size"]),
            filter_optics=bool(config["drop_optics"]),
            cache=Path(config["cache"]).expanduser() if config["cache"] else None,
            device=config["device"] or device,
        )

    @property
    def loaded(self) -> bool:
        """Whether the model is in memory."""
        return self._model is not None

    def caption(self, images: Sequence[np.ndarray]) -> list[str]:
        """Describe images, uint8 (H, W, 3) RGB of any sizes; equal images are described once.

        Raises:
            UserError: the model cannot be loaded.
        """
        keys = [self._key(image) for image in images]
        raw = {key: text for key in dict.fromkeys(keys) if (text := self._read(key)) is not None}
        missing = {key: image for key, image in zip(keys, images, strict=True) if key not in raw}
        # Drawn tokens would depend on the rest of the batch.
        size = 1 if self.generation.temperature > 0 else self.batch_size
        for start in range(0, len(missing), size):
            batch = list(missing.items())[start : start + size]
            for (key, _), text in zip(batch, self._describe([image for _, image in batch]), strict=True):
                raw[key] = text
                self._write(key, text)
        return [drop_optics(raw[key]) if self.filter_optics else raw[key] for key in keys]

    def release(self) -> None:
        """Drop the model from memory; the next image that needs it loads it again."""
        if self._model is not None:
            self._model = None
            if not self.device.startswith("cpu"):
                import torch

                torch.cuda.empty_cache()

    def _describe(self, images: list[np.ndarray]) -> list[str]:
        import torch
        from PIL import Image

        self._load()
        processor, model, settings = self._processor, self._model, self.generation
        inputs = processor(
            images=[[Image.fromarray(image)] for image in images],
            text=[self._question()] * len(images),
            padding=True,
            return_tensors="pt",
        ).to(model.device)
        inputs = inputs.to(model.dtype)  # floating-point tensors alone
        drawn: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        if settings.temperature > 0:
            drawn = {"do_sample": True, "temperature": settings.temperature}
        devices = [model.device] if model.device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices):
            torch.manual_seed(settings.seed)
            tokens = model.generate(**inputs, max_new_tokens=settings.max_new_tokens, num_beams=1, **drawn)
        if not model.config.is_encoder_decoder:
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
        answers = processor.batch_decode(tokens, skip_special_tokens=True)
        return [" ".join(answer.split()) for answer in answers]

    def _question(self) -> str:
        """The prompt as the model was taught to read it: by its chat template, else LLaVA-1.5's."""
        if getattr(self._processor, "chat_template", None):
            content = [{"type": "image"}, {"type": "text", "text": self.generation.prompt}]
            return self._processor.apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
            )
        image = getattr(self._processor, "image_token", "<image>")
        return TEMPLATE.format(image=image, prompt=self.generation.prompt)

    def _load(self) -> None:
        if self._model is not None:
            return
        import torch
        from safetensors import SafetensorError
        from transformers import AutoModelForImageTextToText, AutoProcessor

        device = _device(self.device)
        dtype = self.generation.dtype
        if dtype == "auto":
            dtype = "bfloat16" if device.type == "cuda" else "float32"
        try:
            with quiet_transformers():
                processor = AutoProcessor.from_pretrained(self.folder, local_files_only=True)
                model, info = AutoModelForImageTextToText.from_pretrained(
                    self.folder,
                    dtype=getattr(torch, dtype),
                    use_safetensors=True,
                    local_files_only=True,
                    output_loading_info=True,
                )
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, KeyError, ImportError, SafetensorError) as error:
            raise UserError(
                f"{SETTING}={self.folder} cannot be loaded as an image-text-to-text model: {first_line(error)}"
            ) from error
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"{SETTING}={self.folder} lacks the weights {', '.join(missing[:3])} …; download it again")
        tokenizer = getattr(processor, "tokenizer", None)
        if tokenizer is None:
            raise UserError(f"{SETTING}={self.folder} has a processor without a tokenizer: give another model")
        tokenizer.padding_side = "left"  # answers begin where the questions end
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        self._processor = processor
        self._model = model.to(device).eval()
        if self._model.generation_config.pad_token_id is None:
            self._model.generation_config.pad_token_id = tokenizer.pad_token_id

    def _key(self, image: np.ndarray) -> str:
        if self._identity is None:
            memo = None if self.cache is None else self.cache / "weights"
            self._identity = folder_digest([self.folder], memo)
        facts = [self._identity, asdict(self.generation), image.shape]
        digest = hashlib.sha256(json.dumps(facts, ensure_ascii=False).encode())
        digest.update(np.ascontiguousarray(image).tobytes())
        return digest.hexdigest()

    def _path(self, key: str) -> Path | None:
        return None if self.cache is None else self.cache / key[:2] / f"{key}.json"

    def _read(self, key: str) -> str | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(content["caption"], str):
                raise ValueError("no caption in it")
        except (OSError, ValueError, LookupError, TypeError) as error:
            print(f"warning: {path} cannot be used ({first_line(error)}): it is made again", file=sys.stderr)
            return None
        return content["caption"]

    def _write(self, key: str, text: str) -> None:
        path = self._path(key)
        if path is None:
            return
        facts = {"caption": text, "model": str(self.folder), **asdict(self.generation)}
        try:
            with write_atomically(path) as temporary:
                temporary.write_text(json.dumps(facts, ensure_ascii=False, indent=1), encoding="utf-8")
        except OSError as error:
            raise UserError(
                f"captioner.cache={self.cache} cannot be written ({error.strerror}): give another folder, or null"
            ) from error


def _device(name: str) -> torch.device:
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.device(name)
    except RuntimeError as error:
        raise UserError(f"captioner.device={name}: choose null, auto, cpu or cuda") from error
