"""Fully sharded training (FSDP2): each process keeps a share of weights, gradients, moments and averages.

Each transformer block is gathered when it computes and let go afterwards; what is in no block belongs to the network
itself (arXiv 2304.11277; ``torch.distributed.fsdp.fully_shard``). A frozen base in bfloat16 under control weights in
float32 is one group a block all the same: only what trains must be of one type.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Shard

from dit4sr.errors import UserError
from dit4sr.files import flush
from dit4sr.sharded_files import (
    INDEX,
    PLAIN,
    open_sharded,
    put_back,
    rows_of,
    shard_file,
    take_out,
    write_index,
    write_shard,
)
from dit4sr.training.checkpoint_files import publish, remove
from dit4sr.training.checkpoint_io import cannot_be_written
from dit4sr.training.choices import FROZEN
from dit4sr.training.distributed import StartedHere

PRECISIONS = ("32-true", "bf16-mixed")

OPTIMIZERS = ("adamw", "muon")
"""Optimisers that know of shares: AdamW computes element by element, torch's Muon gathers a matrix for its products.
The 8-bit kernels take whole tensors."""


def check_sharded(config: Mapping[str, Any]) -> None:
    """Refuse what fully sharded training cannot do.

    Args:
        config: configs/train.yaml, composed.

    Raises:
        UserError: naming the setting.
    """
    trainer, optimizer = config["trainer"], config["training"]["optimizer"]
    if trainer["precision"] not in PRECISIONS:
        raise UserError(f"trainer.precision={trainer['precision']}: with trainer=fsdp choose {' or '.join(PRECISIONS)}")
    if optimizer not in OPTIMIZERS:
        raise UserError(
            f"training.optimizer={optimizer} cannot update a share of a weight: with trainer=fsdp choose "
            f"training.optimizer={' or '.join(OPTIMIZERS)}"
        )
    if trainer.get("frozen", "sharded") not in FROZEN:
        raise UserError(f"trainer.frozen={trainer['frozen']}: choose one of {', '.join(FROZEN)}")
    if config["callbacks"]["save_in_background"]:
        raise UserError("callbacks.save_in_background=true does not go with trainer=fsdp: set it to false")


def shard_network(network: nn.Module, mesh: DeviceMesh, *, precision: str, frozen: str) -> None:
    """Shard a network in place: its parameters become DTensors, split along their first dimension.

    Args:
        network: with its weights, the same in each process.
        mesh: of one dimension.
        precision: with ``bf16-mixed`` weights are gathered in bfloat16 (which autocast would make of them) and
            gradients reduced in float32.
        frozen: ``whole`` leaves a copy of what does not train in each process, which then is never gathered.
    """
    if isinstance(next(network.parameters()), DTensor):
        return
    policy = MixedPrecisionPolicy(
        param_dtype=torch.bfloat16 if precision.startswith("bf16") else None,
        reduce_dtype=torch.float32,
        cast_forward_inputs=False,  # the timestep and the modulations are in float32 on purpose; autocast does the rest
    )
    ignored = {p for p in network.parameters() if not p.requires_grad} if frozen == "whole" else None
    # The network itself reshards too: else its own weights would stay gathered between validation and training, and
    # the averaged weights would be trained on.
    settings: dict[str, Any] = {"mesh": mesh, "mp_policy": policy, "reshard_after_forward": True}
    settings["ignored_params"] = ignored
    for block in blocks_of(network):
        fully_shard(block, **settings)
    fully_shard(network, **settings)


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The transformer blocks of a network, and of the networks in it."""
    return [
        module
        for name, module in network.named_modules()
        if name.rpartition(".")[0].rpartition(".")[2] == "transformer_blocks"
    ]


def whole(tensor: Tensor) -> Tensor:
    """A tensor without its distribution; of a sharded one all processes must ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def split(tensor: Tensor, mesh: DeviceMesh, rows: Callable[[int, int], Tensor] | None = None) -> DTensor:
    """This process's share of a tensor.

    Args:
        tensor: whole; or on the meta device, for its type and shape.
        mesh: of one dimension.
        rows: from the first row and the number of rows to these rows; None takes them from ``tensor``.
    """
    start, count = rows_of(mesh.get_local_rank(), mesh.size(), tensor.shape[0])
    piece = tensor[start : start + count].clone() if rows is None else rows(start, count)
    return DTensor.from_local(
        piece.to(mesh.device_type), mesh, [Shard(0)], run_check=False, shape=tensor.shape, stride=tensor.stride()
    )


class Sharded(StartedHere, ModelParallelStrategy):
    """Lightning's strategy for FSDP2, over all processes as one row, with this project's checkpoints.

    Lightning's own writes and reads torch.distributed.checkpoint's pickled index, and keeps the processes of one
    machine for tensor parallelism.

    Args:
        out: the run's folder.
        timeout: of a collective operation.
        frozen: see :func:`shard_network`.
    """

    def __init__(self, out: Path, timeout: timedelta, frozen: str) -> None:
        super().__init__(timeout=timeout)
        self.out, self.frozen = out, frozen

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        self._data_parallel_size, self._tensor_parallel_size = self.world_size, 1

    @property
    def mesh(self) -> DeviceMesh:
        """All processes, in one dimension."""
        return self.device_mesh["data_parallel"]

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self.lightning_module.state_dict()

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        self.lightning_module.load_state_dict(checkpoint["state_dict"], strict=strict)

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        state: dict[str, Any] = getattr(optimizer, "_optimizer", optimizer).state_dict()
        return state

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            optimizer.load_state_dict(state)

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any | None = None) -> None:
        """Write a folder that has its name when all of it is on the disk; every process takes part.

        Raises:
            UserError: in all processes, where one cannot write; what was there before is untouched.
        """
        options = storage_options or {}
        path = Path(filepath)
        partial = Path(self.broadcast(str(path.with_name(f".{path.stem}.{uuid.uuid4().hex[:12]}{path.suffix}"))))
        plain, tensors = take_out(checkpoint, lambda tensor: isinstance(tensor, DTensor))

        def shard() -> str:
            partial.mkdir(parents=True, exist_ok=True)
            held = {name: own(tensor) for name, tensor in tensors.items()}
            digest = write_shard(partial, self.global_rank, self.world_size, held)
            flush(partial / shard_file(self.global_rank, self.world_size))  # here: another machine could not
            return digest

        def index() -> None:
            if self.is_global_zero:
                if len(list(partial.iterdir())) != self.world_size:
                    raise OSError(f"the processes do not see the same folder: {path.parent} must be on a shared disk")
                shapes = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in tensors.items()}
                write_index(partial, plain, shapes, [str(digest) for digest in digests])
                for file in (partial / PLAIN, partial / INDEX, partial):
                    flush(file)
                publish(partial, path, **options)

        try:
            digests = self._together(shard, path)
            self._together(index, path)
        finally:
            if self.is_global_zero:
                shutil.rmtree(partial, ignore_errors=True)

    def _together(self, work: Callable[[], Any], path: Path) -> list[Any]:
        """What ``work`` returns in each process.

        Raises:
            UserError: in all of them where it fails in one.
        """
        result, reason = None, None
        try:
            result = work()
        except (OSError, RuntimeError, SafetensorError) as error:  # a full disk is any of these
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        results: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(results, (result, reason))
        if failed := next((reason for _, reason in results if reason is not None), None):
            raise cannot_be_written(path, failed)
        return [result for result, _ in results]

    def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
        """Read this process's share of a checkpoint, whoever wrote it: any number of ranks, or one process.

        Raises:
            UserError: it is damaged.
        """
        path = Path(checkpoint_path)
        if not path.is_dir():
            return self._split_whole(torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        try:
            files = open_sharded(path)

            def share(name: str) -> DTensor:
                dtype, shape = files.tensors[name]
                like = torch.empty(shape, dtype=dtype, device="meta")
                return split(like, self.mesh, lambda start, count: files.rows(name, start, count))

            loaded: dict[str, Any] = put_back(files.plain(), share)
        except (OSError, ValueError, KeyError) as error:
            raise UserError(f"{path} cannot be read as a checkpoint ({error})") from error
        return loaded

    def _split_whole(self, checkpoint: dict[str, Any]) -> dict[str, Any]:
        """A checkpoint that one process wrote: all but its single numbers is split."""
        for part in {"state_dict", "ema", "optimizer_states"} & set(checkpoint):
            plain, tensors = take_out(checkpoint[part], lambda tensor: tensor.ndim > 0)
            shares = {name: split(tensor, self.mesh) for name, tensor in tensors.items()}
            checkpoint[part] = put_back(plain, shares.__getitem__)
        return checkpoint

    def remove_checkpoint(self, filepath: Any) -> None:
        if self.is_global_zero:
            remove(Path(filepath))
