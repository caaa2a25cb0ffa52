"""Stable Diffusion 3's three text encoders (arXiv 2403.03206, section 4.2 and figure 2)."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dit4sr.errors import UserError
from dit4sr.prompts.identity import folder_digest
from dit4sr.prompts.quantised_t5 import quantise_t5
from dit4sr.prompts.sd3_embedding import encode_sd3, of_clip, of_t5, put_together
from dit4sr.prompts.sources import first_line, local_folder, quiet_transformers, read_config
from dit4sr.prompts.text import TextEmbedding
from dit4sr.prompts.weight_bytes import loaded_bytes
from dit4sr.quantising import BITS_A_WEIGHT, need_package

SETTING = "backbone.pretrained"
CLIPS, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"
CLIP_TOKENIZERS, T5_TOKENIZER = ("tokenizer", "tokenizer_2"), "tokenizer_3"
WIDE = "wo"
"""Maps of T5 that transformers keeps in float32 where the other weights are float16."""
AT_ONCE = 32
"""Prompts that go through an encoder together where it is in memory alone."""
PARTS = (*CLIPS, T5, *CLIP_TOKENIZERS, T5_TOKENIZER)


@dataclass(eq=False)
class SD3TextEncoder:
    """The text encoders of a folder in diffusers' layout; they are in memory from the first use to :meth:`release`.

    Sizes come from the folder's own configs. Without ``text_encoder_3`` T5's tokens are zeros.

    Args:
        folder: holds text_encoder, text_encoder_2, tokenizer, tokenizer_2 and, for T5, text_encoder_3, tokenizer_3.
        tokens: M; the CLIPs take as many as their tokenizer allows (77), T5 the rest.
        dtype: of the weights; None for the dtype of the files.
        width: W where neither T5 nor a transformer says it.
        keep: whether the weights stay in memory after :meth:`encode`.
        in_turn: have one encoder in memory at a time: each is loaded for itself and dropped once all prompts of an
            :meth:`encode` have gone through it. The embeddings are then on the CPU.
        quantise: of T5's matrices: none, int8_weights or nf4; see :mod:`dit4sr.quantising`.

    Raises:
        UserError: something is missing in the folder, ``tokens`` leaves none to T5, or a package is not installed.
    """

    folder: Path
    tokens: int
    dtype: torch.dtype | None = None
    width: int = 0
    keep: bool = True
    in_turn: bool = False
    quantise: str = "none"
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.has_t5 = (self.folder / T5).is_dir()
        if self.quantise != "none":
            need_package(self.quantise, "prompt.quantise")
        self._check_parts()
        configs = [read_config(self.folder / part / "config.json", SETTING) for part in CLIPS]
        try:
            self.pooled_width: int = sum(config["projection_dim"] for config in configs)
            clip_width = sum(config["hidden_size"] for config in configs)
            self.width = self._width()
        except LookupError as error:
            raise UserError(
                f"{SETTING}={self.folder}: its text encoders' config.json lack {error}; download them again"
            ) from error
        if self.width < clip_width:
            raise UserError(
                f"{SETTING}={self.folder}: the text stream is {self.width} wide, narrower than the CLIPs' {clip_width}"
            )
        self._loaded: dict[str, Any] = {}
        self._tokenizers = {part: self._tokenizer(part) for part in CLIP_TOKENIZERS}
        if self.has_t5:
            self._tokenizers[T5_TOKENIZER] = self._tokenizer(T5_TOKENIZER)
        positions = [config.get("max_position_embeddings", 77) for config in configs]
        self.clip_tokens = int(min(self._tokenizers["tokenizer"].model_max_length, *positions))
        if self.tokens <= self.clip_tokens:
            raise UserError(
                f"backbone.text_encoder.tokens={self.tokens}: the CLIPs take {self.clip_tokens} and T5 the rest, "
                f"so give more than {self.clip_tokens} (published: 154)"
            )

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str | Path,
        *,
        tokens: int,
        dtype: torch.dtype | None = None,
        width: int = 0,
        keep: bool = True,
        quantise: str = "none",
        local_files_only: bool = False,
    ) -> SD3TextEncoder:
        """Find the encoders of a folder or hub id; their weights are loaded at the first use.

        Raises:
            UserError: see :func:`dit4sr.prompts.sources.local_folder` and the class.
        """
        folder = local_folder(pretrained, SETTING, folders=PARTS, local_files_only=local_files_only)
        return cls(folder, tokens, dtype, width, keep, quantise=quantise)

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return bool(self._loaded)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SD3TextEncoder:
        """Choose device and dtype, for what is in memory and for what will be loaded."""
        before = self.device, self.dtype
        self.device = torch.device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        if self.quantise != "none" and (self.device, self.dtype) != before:
            self.release()  # quantised anew where it is used next
        for model in self._loaded.values():
            # Without a new dtype no cast: T5 in float16 has maps that are not.
            model.to(device=self.device, dtype=dtype)
        return self

    def load(self) -> SD3TextEncoder:
        """Bring the weights into memory now.

        Raises:
            UserError: they are missing, damaged or incomplete.
        """
        if not self._loaded:
            from transformers import CLIPTextModelWithProjection, T5EncoderModel

            # Not as inference tensors, whatever the caller is in: training may use them later.
            with torch.inference_mode(False), quiet_transformers():
                loaded = {part: self._model(CLIPTextModelWithProjection, part) for part in CLIPS}
                if self.has_t5:
                    loaded[T5] = self._model(T5EncoderModel, T5)
            self._loaded = loaded
        return self

    def release(self) -> None:
        """Drop the weights from memory; the next :meth:`encode` loads them again."""
        if self._loaded:
            self._loaded = {}
            self._empty_cache()

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts on the encoders' device and in their dtype: tokens (B, M, W), pooled (B, P)."""
        if self.in_turn:
            return self._encode_in_turn(prompts)
        models = self.load()._loaded
        embedding = encode_sd3(
            prompts,
            clip_tokenizers=[self._tokenizers[part] for part in CLIP_TOKENIZERS],
            clips=[models[part] for part in CLIPS],
            t5_tokenizer=self._tokenizers.get(T5_TOKENIZER),
            t5=models.get(T5),
            clip_tokens=self.clip_tokens,
            t5_tokens=self.tokens - self.clip_tokens,
            width=self.width,
        )
        if not self.keep:
            del models
            self.release()
        return embedding

    def _encode_in_turn(self, prompts: list[str]) -> TextEmbedding:
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        self.release()
        batches = [prompts[start : start + AT_ONCE] for start in range(0, len(prompts), AT_ONCE)]

        def through_clip(part: str, tokenizer: Any) -> TextEmbedding:
            clip = self._model(CLIPTextModelWithProjection, part)
            return TextEmbedding.cat([of_clip(clip, some, tokenizer, self.clip_tokens).to("cpu") for some in batches])

        def through_t5(tokenizer: Any) -> Tensor:
            t5, length = self._model(T5EncoderModel, T5), self.tokens - self.clip_tokens
            return torch.cat([of_t5(t5, some, tokenizer, length).to("cpu") for some in batches])

        # Each encoder is gone when its function returns.
        of_clips, last = [], None
        with torch.inference_mode(False), quiet_transformers():
            for part, name in zip(CLIPS, CLIP_TOKENIZERS, strict=True):
                of_clips.append(through_clip(part, self._tokenizers[name]))
                self._empty_cache()
            if self.has_t5:
                last = through_t5(self._tokenizers[T5_TOKENIZER])
                self._empty_cache()
        return put_together(of_clips, last, self.tokens - self.clip_tokens, self.width)

    @property
    def weight_bytes(self) -> dict[str, int]:
        """Bytes that each encoder's weights take in memory, by its folder's name."""
        found = {}
        for part in (*CLIPS, *([T5] if self.has_t5 else [])):
            config = read_config(self.folder / part / "config.json", SETTING)
            # As transformers chooses for "auto": what the config says, else what the files have.
            named = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
            dtype = self.dtype or (named if isinstance(named, torch.dtype) else None)
            wide, bits = (WIDE, BITS_A_WEIGHT.get(self.quantise)) if part == T5 else ("", None)
            found[part] = loaded_bytes(self.folder / part, dtype, wide, bits)
        return found

    def identity(self, memo: Path | None = None) -> str:
        """Weights, configs and tokenizers by content, the lengths and the dtype.

        Args:
            memo: see :func:`dit4sr.prompts.identity.folder_digest`.
        """
        files = folder_digest((self.folder / part for part in PARTS), memo)
        approximate = "" if self.quantise == "none" else f" {self.quantise}"
        lengths = f"{self.clip_tokens}+{self.tokens - self.clip_tokens}"
        return f"sd3 {files} {lengths} {self.width} {self.dtype}{approximate}"

    def _empty_cache(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _width(self) -> int:
        if self.has_t5:
            return int(read_config(self.folder / T5 / "config.json", SETTING)["d_model"])
        transformer = self.folder / "transformer" / "config.json"
        if transformer.is_file():
            return int(read_config(transformer, SETTING)["joint_attention_dim"])
        return self.width

    def _check_parts(self) -> None:
        needed = [*CLIPS, *CLIP_TOKENIZERS, *([T5_TOKENIZER] if self.has_t5 else [])]
        if missing := [part for part in needed if not (self.folder / part).is_dir()]:
            raise UserError(
                f"{SETTING}={self.folder} has no {', '.join(missing)}: complete the folder with the text encoders and "
                "tokenizers of Stable Diffusion 3.5 in diffusers' layout"
            )
        encoders = [*CLIPS, *([T5] if self.has_t5 else [])]
        if bare := [part for part in encoders if not any((self.folder / part).glob("*.safetensors"))]:
            raise UserError(
                f"{SETTING}={self.folder}: {', '.join(bare)} holds no *.safetensors, the only format that is read; "
                "download it again"
            )
        if not self.has_t5:
            print(f"warning: {self.folder} has no {T5}: T5's tokens are zeros", file=sys.stderr)

    def _tokenizer(self, part: str) -> Any:
        from transformers import AutoTokenizer

        try:
            return AutoTokenizer.from_pretrained(self.folder / part, local_files_only=True)
        except Exception as error:  # a broken tokenizer.json raises bare Exception
            raise UserError(f"{SETTING}: {self.folder / part} is no tokenizer: {first_line(error)}") from error

    def _model(self, kind: Any, part: str) -> Any:
        from safetensors import SafetensorError

        where = self.folder / part
        try:
            model, info = kind.from_pretrained(
                where,
                dtype=self.dtype or "auto",
                use_safetensors=True,
                local_files_only=True,
                output_loading_info=True,
            )
        except torch.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise UserError(f"{SETTING}: {where} cannot be loaded: {first_line(error)}") from error
        if missing := sorted(info["missing_keys"]):
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise UserError(f"{SETTING}: {where} lacks the weights {', '.join(missing[:3])}{more}; download it again")
        if part == T5 and self.quantise != "none":
            quantise_t5(model, self.quantise, self.device)
        return model.to(self.device).eval().requires_grad_(False)
