"""Stable Diffusion 3's three text encoders (arXiv 2403.03206, section 4.2 and figure 2)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from dit4sr.errors import UserError
from dit4sr.prompts.identity import folder_digest
from dit4sr.prompts.sources import first_line, local_folder, quiet_transformers, read_config
from dit4sr.prompts.text import TextEmbedding

SETTING = "backbone.pretrained"
CLIPS, T5 = ("text_encoder", "text_encoder_2"), "text_encoder_3"
CLIP_TOKENIZERS, T5_TOKENIZER = ("tokenizer", "tokenizer_2"), "tokenizer_3"
PARTS = (*CLIPS, T5, *CLIP_TOKENIZERS, T5_TOKENIZER)


def encode_sd3(
    prompts: list[str],
    *,
    clip_tokenizers: Sequence[Any],
    clips: Sequence[Any],
    t5_tokenizer: Any | None,
    t5: Any | None,
    clip_tokens: int,
    t5_tokens: int,
    width: int,
    device: torch.device | str | None = None,
) -> TextEmbedding:
    """Embed B prompts with the modules of a Stable Diffusion 3 pipeline.

    The CLIPs' second-to-last hidden states, side by side on the channels and zero-padded to W, are followed by
    T5's tokens (zeros where there is no T5); the pooled vector is the CLIPs' projected text embeddings. Padding
    is not masked, as in Stable Diffusion 3's training.

    Args:
        prompts: "" is the null prompt.
        clip_tokenizers, clips: of CLIP-L and OpenCLIP-G.
        t5_tokenizer, t5: both None to leave T5 out.
        clip_tokens, t5_tokens: tokens of a prompt, padding and special tokens included; M is their sum.
        width: W.
        device: where to compute; None: where the encoders are.

    Returns:
        tokens (B, clip_tokens + t5_tokens, W) and pooled (B, sum of the CLIPs' projections), on that device.
    """

    def ids(tokenizer: Any, length: int, model: Any) -> Tensor:
        batch = tokenizer(prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        return batch.input_ids.to(device if device is not None else model.device)

    with torch.no_grad():
        outputs = [
            clip(ids(tokenizer, clip_tokens, clip), output_hidden_states=True)
            for tokenizer, clip in zip(clip_tokenizers, clips, strict=True)
        ]
        of_clip = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        of_clip = F.pad(of_clip, (0, width - of_clip.shape[-1]))
        if t5 is None:
            of_t5 = of_clip.new_zeros(len(prompts), t5_tokens, width)
        else:
            of_t5 = t5(ids(t5_tokenizer, t5_tokens, t5))[0].to(of_clip.device)
        pooled = torch.cat([output.text_embeds for output in outputs], dim=-1)
        return TextEmbedding(torch.cat([of_clip, of_t5], dim=1), pooled)


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

    Raises:
        UserError: something is missing in the folder, or ``tokens`` leaves none to T5.
    """

    folder: Path
    tokens: int
    dtype: torch.dtype | None = None
    width: int = 0
    keep: bool = True
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __post_init__(self) -> None:
        self.has_t5 = (self.folder / T5).is_dir()
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
        local_files_only: bool = False,
    ) -> SD3TextEncoder:
        """Find the encoders of a folder or hub id; their weights are loaded at the first use.

        Raises:
            UserError: see :func:`dit4sr.prompts.sources.local_folder` and the class.
        """
        folder = local_folder(pretrained, SETTING, folders=PARTS, local_files_only=local_files_only)
        return cls(folder, tokens, dtype, width, keep)

    @property
    def loaded(self) -> bool:
        """Whether the weights are in memory."""
        return bool(self._loaded)

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SD3TextEncoder:
        """Choose device and dtype, for what is in memory and for what will be loaded."""
        self.device = torch.device(device) if device is not None else self.device
        self.dtype = dtype or self.dtype
        for model in self._loaded.values():
            model.to(device=self.device, dtype=self.dtype)
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
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts on the encoders' device and in their dtype: tokens (B, M, W), pooled (B, P)."""
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

    def identity(self, memo: Path | None = None) -> str:
        """Weights, configs and tokenizers by content, the lengths and the dtype.

        Args:
            memo: see :func:`dit4sr.prompts.identity.folder_digest`.
        """
        files = folder_digest((self.folder / part for part in PARTS), memo)
        return f"sd3 {files} {self.clip_tokens}+{self.tokens - self.clip_tokens} {self.width} {self.dtype}"

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
        return model.to(self.device).eval().requires_grad_(False)
