"""Where training runs: device, precision, threads, and the other processes started by torchrun."""

import copy
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.core.config import Settings
from training.core.errors import CannotTrain

Batch = dict[str, Tensor]
_TIMEOUT = timedelta(days=1)
"""How long processes wait for the main one, which alone downloads, evaluates and publishes; torch's default of some
minutes is too short. If a process fails, torchrun ends the others."""


@dataclass(frozen=True)
class Runtime:
    """The device and the precision of this process, and its rank among `world_size` processes.

    Attributes:
        reason: how the precision was decided, in words.
    """

    device: torch.device
    precision: str = "fp32"
    reason: str = ""
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision in bfloat16, which needs no loss scaling; does nothing where the precision is fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def to_device(self, batch: Batch) -> Batch:
        """Return the batch on the device."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def wrap_distributed(self, network: nn.Module) -> nn.Module:
        """Return the network with gradients averaged over all processes after each backward pass.

        BatchNorm on CUDA uses the statistics of the global batch (SyncBatchNorm). torch has no such layer for the CPU:
        there, each process normalises by its own part of the batch, and the running statistics of rank 0 are kept.

        The network itself keeps its layers, and shares all parameters and buffers with the returned one.
        """
        if self.world_size == 1:
            return network
        if self.device.type == "cuda":
            return DistributedDataParallel(with_sync_batchnorm(network), device_ids=[self.device.index])
        return DistributedDataParallel(network)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """Sum the tensor over all processes, in place."""
        if self.world_size > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, text: str) -> str:
        """Return the main process's text, in every process."""
        if self.world_size == 1:
            return text
        content = list(text.encode())
        size = torch.tensor(len(content), device=self.device)
        dist.broadcast(size, src=0)
        encoded = torch.tensor(content if self.is_main else [0] * int(size), dtype=torch.uint8, device=self.device)
        dist.broadcast(encoded, src=0)
        return bytes(encoded.tolist()).decode()

    def barrier(self) -> None:
        """Wait until all processes have reached this point."""
        if self.world_size > 1:
            dist.barrier()


def with_sync_batchnorm(network: nn.Module) -> nn.Module:
    """Return a copy of the network with SyncBatchNorm in place of BatchNorm; both have the same parameters and buffers.

    torch converts a network in place, but one with SyncBatchNorm is no longer what was defined: its layers are not
    recognised as BatchNorm, and cannot be trained on a CPU. What is validated, exported and kept is the original.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    copied = copy.deepcopy(network, shared)
    converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(copied)  # type: ignore[no-untyped-call]
    return converted


@contextmanager
def start_runtime(settings: Settings) -> Iterator[Runtime]:
    """The runtime described by the settings and by torchrun's environment (RANK, LOCAL_RANK, WORLD_SIZE).

    Raises CannotTrain if CUDA was requested and is missing, or the batch cannot be divided evenly.
    """
    world_size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if settings.batch_size % world_size:
        raise CannotTrain(f"--batch-size {settings.batch_size} cannot be divided evenly among {world_size} processes.")
    device = _select_device(settings.device, int(os.environ.get("LOCAL_RANK", "0")))
    if settings.threads or device.type == "cpu":
        local_world_size = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(settings.threads or max(1, _count_cores() // local_world_size))
    precision, reason = _select_precision(settings.precision, device)
    if world_size > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        runtime = Runtime(device, precision, reason, rank, world_size)
        yield runtime
        # A process that closes its connections early can abort others that are still in their last collective.
        runtime.barrier()
    finally:
        if world_size > 1:
            dist.destroy_process_group()


def end_process(status: int) -> None:
    """End one of several processes at once; return if it is the only one.

    While the interpreter shuts down, threads of torch's collectives can abort the process ("terminate called without an
    active exception"), and torchrun would report as failed what is complete.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os._exit(status)


def _select_device(requested: str, local_rank: int) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if requested == "cuda" and not has_cuda:
        raise CannotTrain("--device cuda: torch finds no CUDA device; use --device cpu or auto.")
    if requested == "cpu" or not has_cuda:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _count_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _select_precision(requested: str, device: torch.device) -> tuple[str, str]:
    """Return the precision, and how it was decided."""
    if requested != "auto":
        return requested, "as requested"
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported():
            return "bf16", "the GPU supports bfloat16"
        return "fp32", "the GPU does not support bfloat16"
    instructions = cpu_bfloat16()
    if instructions:
        return "bf16", f"the CPU has instructions for bfloat16 ({instructions})"
    return "fp32", "the CPU has no instructions for bfloat16"


def cpu_bfloat16() -> str:
    """Return the CPU's instruction set for bfloat16 as Linux names it; empty if there is none or it is unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    return next((name for name in ("amx_bf16", "avx512_bf16") if name in flags), "")


def describe_hardware(runtime: Runtime) -> str:
    """Describe the hardware in words, for a card."""
    if runtime.device.type == "cuda":
        return f"{runtime.world_size} × {torch.cuda.get_device_name(runtime.device)}, {runtime.precision}"
    threads, processes = torch.get_num_threads(), runtime.world_size
    return (
        f"CPU, {processes} process{'es' if processes > 1 else ''} with {threads} thread{'s' if threads > 1 else ''}, "
        f"{runtime.precision}"
    )
