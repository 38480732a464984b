"""Where training runs: device, precision, threads, and the other processes that torchrun started."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.core.config import Settings
from training.core.errors import CannotTrain

Batch = dict[str, Tensor]


@dataclass(frozen=True)
class Runtime:
    """The device of this process, the precision of its arithmetic, and its place among `world` processes."""

    device: torch.device
    precision: str = "fp32"
    reason: str = ""
    rank: int = 0
    world: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[object]:
        """Mixed precision by bfloat16, which needs no scaling of the loss; nothing where the precision is fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def move(self, batch: Batch) -> Batch:
        """The batch on the device."""
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch.items()}

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network, its gradients averaged over all processes after each backward pass.

        BatchNorm: on CUDA its statistics are those of the global batch (SyncBatchNorm); on the CPU, where torch has
        no such layer, each process normalises by its own share and the first one's running statistics are kept.
        """
        if self.world == 1:
            return network
        if self.device.type == "cuda":
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]
            return DistributedDataParallel(network, device_ids=[self.device.index])
        return DistributedDataParallel(network)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in place."""
        if self.world > 1:
            dist.all_reduce(tensor)
        return tensor

    def broadcast(self, text: str) -> str:
        """The first process's text, on every process."""
        if self.world == 1:
            return text
        encoded = torch.zeros(4096, dtype=torch.uint8, device=self.device)
        if self.is_main:
            content = text.encode()
            encoded[: len(content)] = torch.tensor(list(content), dtype=torch.uint8)
        dist.broadcast(encoded, src=0)
        return bytes(encoded.tolist()).rstrip(b"\0").decode()

    def barrier(self) -> None:
        """Returns when all processes have come here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def started(settings: Settings) -> Iterator[Runtime]:
    """The runtime that the settings and torchrun's environment (RANK, LOCAL_RANK, WORLD_SIZE) describe.

    Raises CannotTrain: CUDA was asked for and is not there, or the batch cannot be dealt out evenly.
    """
    world, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    if settings.batch_size % world:
        raise CannotTrain(f"--batch-size {settings.batch_size} cannot be dealt out evenly to {world} processes.")
    device = _device(settings.device, int(os.environ.get("LOCAL_RANK", "0")))
    if settings.threads or device.type == "cpu":
        torch.set_num_threads(settings.threads or max(1, _cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))
    precision, reason = _precision(settings.precision, device)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Runtime(device, precision, reason, rank, world)
    finally:
        if world > 1:
            dist.destroy_process_group()


def _device(wanted: str, local_rank: int) -> torch.device:
    found = torch.cuda.is_available()
    if wanted == "cuda" and not found:
        raise CannotTrain("--device cuda: torch finds no CUDA device here; use --device cpu or auto.")
    if wanted == "cpu" or not found:
        return torch.device("cpu")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _precision(wanted: str, device: torch.device) -> tuple[str, str]:
    """The precision, and how it was decided."""
    if wanted != "auto":
        return wanted, "as asked"
    if device.type == "cuda":
        able = torch.cuda.is_bf16_supported()
        return ("bf16", "the GPU computes in bfloat16") if able else ("fp32", "the GPU has no bfloat16")
    found = cpu_bfloat16()
    if found:
        return "bf16", f"the CPU has instructions for bfloat16 ({found})"
    return "fp32", "the CPU has no instructions for bfloat16"


def cpu_bfloat16() -> str:
    """The CPU's instruction set for bfloat16, as Linux names it; empty where there is none or it cannot be told."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split("flags", 1)[1].splitlines()[0].split()
    except (OSError, IndexError):
        return ""
    return next((name for name in ("amx_bf16", "avx512_bf16") if name in flags), "")


def hardware(runtime: Runtime) -> str:
    """What this runs on, in words for a card."""
    if runtime.device.type == "cuda":
        return f"{runtime.world} × {torch.cuda.get_device_name(runtime.device)}, {runtime.precision}"
    return f"CPU, {torch.get_num_threads()} threads × {runtime.world}, {runtime.precision}"
