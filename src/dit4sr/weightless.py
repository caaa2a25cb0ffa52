"""Components of diffusers' pipelines that are a configuration and nothing else."""

from __future__ import annotations

from typing import Any, Self

from diffusers import ConfigMixin, ModelMixin

WHERE = ("subfolder", "cache_dir", "local_files_only", "revision", "token", "force_download", "proxies")


class WeightlessModel(ModelMixin, ConfigMixin):
    """A model without weights: ``save_pretrained`` writes config.json, and that is read back."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Self:
        """Build the model that a folder's or a hub repository's config.json states.

        Args:
            pretrained_model_name_or_path: folder or hub id.
            kwargs: where the file is, as in diffusers; what concerns weights (their dtype, device map, …) is ignored.
        """
        config = cls.load_config(pretrained_model_name_or_path, **{k: v for k, v in kwargs.items() if k in WHERE})
        return cls.from_config(config).eval()
