"""Embedded prompts on disk, found again by their content, so that the encoders need not stay in memory."""

from __future__ import annotations

import hashlib
import sys
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

from dit4sr.errors import UserError
from dit4sr.files import write_atomically
from dit4sr.prompts.sources import first_line
from dit4sr.prompts.text import TextEmbedding, TextEncoder, embedding_from_bytes, embedding_to_bytes

BATCH = 32
"""Prompts encoded at once."""
IN_TURN = 1024
"""Prompts encoded at once by encoders that are loaded one after the other, each time anew."""
REMEMBERED = 64 << 20
"""Bytes of embeddings kept in memory: the null and the negative prompt come again and again."""


class CachedTextEncoder:
    """An encoder that asks another one only for prompts it has never seen.

    A prompt's embedding is in ``<folder>/<encoder>/<prompt>.safetensors``, both names hashes of content: another
    prompt, other weights, lengths or dtype give another name. The file has the encoder's own dtype, so that
    cached and live embeddings are the same. Files are written whole or not at all, so processes may share the
    folder; one that cannot be read, or was changed, is made again.

    Args:
        encoder: its weights are loaded at the first prompt that is not on disk.
        folder: is made.
        release: drop the encoder's weights from memory each time the missing prompts are encoded.

    Raises:
        UserError: the folder cannot be written.
    """

    def __init__(self, encoder: TextEncoder, folder: Path, *, release: bool) -> None:
        self.encoder = encoder
        self.tokens, self.width, self.pooled_width = encoder.tokens, encoder.width, encoder.pooled_width
        self.root = folder
        self.drop_weights = release
        self.device = torch.device("cpu")
        self._folder: Path | None = None
        self._remembered: OrderedDict[str, TextEmbedding] = OrderedDict()
        self._bytes = 0

    @property
    def folder(self) -> Path:
        """Where this encoder's embeddings are; the weights are hashed at the first use."""
        if self._folder is None:
            with _writing(self.root):
                identity = self.identity(self.root / "weights")
            self._folder = self.root / hashlib.sha256(identity.encode()).hexdigest()[:16]
        return self._folder

    def path(self, prompt: str) -> Path:
        """The file of a prompt."""
        name = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> CachedTextEncoder:
        """Choose where the encoder computes and embeddings go, and its dtype, which is part of the cache's key."""
        self.device = torch.device(device) if device is not None else self.device
        self.encoder.to(device, dtype)
        if dtype is not None:
            self._folder = None
            self._forget()
        return self

    def release(self) -> None:
        """Drop the encoder's weights and the remembered embeddings from memory."""
        self.encoder.release()
        self._forget()

    def identity(self, memo: Path | None = None) -> str:
        """That of the encoder."""
        return self.encoder.identity(memo)

    def encode(self, prompts: list[str]) -> TextEmbedding:
        """Embed B prompts: tokens (B, M, W), pooled (B, P), in the encoder's dtype.

        Raises:
            UserError: the encoder cannot be loaded, or the cache cannot be written.
        """
        # Remembered embeddings outlive the caller's inference mode: training takes gradients beside them.
        with torch.inference_mode(False), torch.no_grad():
            found: dict[str, TextEmbedding] = {}
            for prompt in dict.fromkeys(prompts):
                embedding = self._remembered.get(prompt) or self._read(prompt)
                if embedding is not None:
                    found[prompt] = embedding
            missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
            found |= self._encode_missing(missing)
            for prompt, embedding in found.items():
                self._remember(prompt, embedding)
            return TextEmbedding.cat([found[prompt] for prompt in prompts]).to(self.device)

    def precompute(self, prompts: Iterable[str]) -> int:
        """Write the embeddings that are not on disk yet, with the weights in memory once; return their number."""
        missing = (prompt for prompt in _unique(prompts) if not self.path(prompt).is_file())
        made = 0
        with torch.inference_mode(False), torch.no_grad():
            while batch := list(islice(missing, self._at_once)):
                if made == 0:
                    print("encoding prompts that are not in the cache yet …", file=sys.stderr)
                self._write(batch)
                made += len(batch)
        if made and self.drop_weights:
            self.encoder.release()
        if made:
            print(f"{made} prompts encoded into {self.folder}", file=sys.stderr)
        return made

    @property
    def _at_once(self) -> int:
        return IN_TURN if getattr(self.encoder, "in_turn", False) else BATCH

    def _encode_missing(self, prompts: list[str]) -> dict[str, TextEmbedding]:
        made: dict[str, TextEmbedding] = {}
        for start in range(0, len(prompts), self._at_once):
            made |= self._write(prompts[start : start + self._at_once])
        if prompts and self.drop_weights:
            self.encoder.release()
        return made

    def _write(self, prompts: list[str]) -> dict[str, TextEmbedding]:
        batch = self.encoder.encode(prompts).to("cpu")
        made = {prompt: batch[n] for n, prompt in enumerate(prompts)}
        with _writing(self.root):
            for prompt, embedding in made.items():
                with write_atomically(self.path(prompt)) as temporary:
                    temporary.write_bytes(embedding_to_bytes(embedding, None, prompt))
        return made

    def _read(self, prompt: str) -> TextEmbedding | None:
        path = self.path(prompt)
        try:
            embedding = embedding_from_bytes(path.read_bytes())
            shapes = (tuple(embedding.tokens.shape), tuple(embedding.pooled.shape))
            if shapes != ((1, self.tokens, self.width), (1, self.pooled_width)):
                raise ValueError(f"its shapes are {shapes}")
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            print(f"warning: {path} cannot be used ({first_line(error)}): it is made again", file=sys.stderr)
            return None
        return embedding

    def _remember(self, prompt: str, embedding: TextEmbedding) -> None:
        if prompt not in self._remembered:
            # A copy: a row of a batch would keep the whole batch in memory.
            embedding = TextEmbedding(embedding.tokens.clone(), embedding.pooled.clone())
            self._remembered[prompt] = embedding
            self._bytes += _nbytes(embedding)
        self._remembered.move_to_end(prompt)
        while self._bytes > REMEMBERED:
            _, oldest = self._remembered.popitem(last=False)
            self._bytes -= _nbytes(oldest)

    def _forget(self) -> None:
        self._remembered.clear()
        self._bytes = 0


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Errors of writing the cache are the user's to mend."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"prompt.cache={folder} cannot be written ({error.strerror}): give another folder, make room, "
            "or use prompt.encoding=live"
        ) from error


def _unique(prompts: Iterable[str]) -> Iterator[str]:
    seen: set[bytes] = set()
    for prompt in prompts:
        digest = hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).digest()
        if digest not in seen:
            seen.add(digest)
            yield prompt


def _nbytes(embedding: TextEmbedding) -> int:
    return embedding.tokens.nbytes + embedding.pooled.nbytes
