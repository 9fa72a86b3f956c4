"""One training run over several processes, each with a share of every batch (see torchrun).

Notable:
- All processes map the same files and sample the same batches. Of a batch, each reads the pixels
  and the features of its own share alone, so only their pages of the files; a GPU that has memory
  for all of the data reads it once. Features of student, teacher and captions are then gathered.
- After an epoch each process encodes a share of the validation images with the main process's batch
  statistics, so that the accuracy is that of the student that is stored.
- With one process, everything here does nothing.
"""

import atexit
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from typing import Final, TypeVar

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.distributed import ReduceOp, all_gather, all_reduce, broadcast

from distill.errors import Interrupted
from distill.models.devices import choose_device

T = TypeVar("T")
TIMEOUT: Final = timedelta(days=7)  # the main process encodes all images before training


@cache
def processes() -> PartialState:
    """How many processes train together, which of them this is, and its device."""
    # What `connect` made is shared by all instances.
    state = PartialState(cpu=choose_device().type == "cpu", timeout=TIMEOUT)
    if state.num_processes > 1:
        # Gloo threads that still run when the interpreter exits would abort the process.
        atexit.register(state.destroy_process_group)
    return state


def connect(device: str) -> PartialState:
    """Connect to the other processes where torchrun started several, each on its own `device`.

    Over gloo on CPUs, over NCCL on GPUs. The first call in a process decides.

    Raises:
        DeviceError: this machine does not have the device.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda" and chosen.index is not None:
        torch.cuda.set_device(chosen)
    PartialState(cpu=chosen.type == "cpu", timeout=TIMEOUT)
    return processes()


def share(batch: int) -> slice:
    """This process's part of a batch, whose size the number of processes divides."""
    size = batch // processes().num_processes
    first = processes().process_index * size
    return slice(first, first + size)


def share_of_rows(rows: int, batch: int) -> Tensor:
    """This process's part of `rows` rows that are read in order, int64.

    Whole batches of `batch` rows, so that each is computed as in a single process.
    """
    batches = torch.split(torch.arange(rows), batch)
    own = batches[processes().process_index :: processes().num_processes]
    return torch.cat(own) if own else torch.empty(0, dtype=torch.int64)


def share_buffers(module: nn.Module) -> None:
    """Copy the buffers of `module`, such as means of batch norm, from the main process to all."""
    if processes().num_processes > 1:
        for buffer in module.buffers():
            broadcast(buffer, src=0)


def gather(features: Tensor) -> Tensor:
    """The features [batch, dim] of all processes, from each one's share [batch / processes, dim].

    Every process then computes the loss of the whole batch, including contrasts between shares. The
    gradient flows only through this process's own rows (open_clip's "no gather_with_grad, no
    local_loss"), times the number of processes: DistributedDataParallel averages over processes
    what must be summed over rows.
    """
    count = processes().num_processes
    if count == 1:
        return features
    shares = [torch.empty_like(features) for _ in range(count)]
    all_gather(shares, features.detach().contiguous())
    shares[processes().process_index] = (
        features.detach() + (features - features.detach()) * count  # the same value, bit for bit
    )
    return torch.cat(shares)


def main_process_first(make: Callable[[], T]) -> T:
    """What `make` returns in this process, called when the main process has returned from it.

    The other processes wait in a collective call, which a signal does not end. torchrun and Ray
    send a stop to all processes; one that reaches only another process is noticed afterwards.

    Raises:
        Interrupted: in every process, if `make` raised it in the main one.
    """
    made: T | None = None
    stop: Interrupted | None = None
    if processes().is_main_process:
        try:
            made = make()
        except Interrupted as error:
            stop = error
    if any_process(stop is not None):
        raise stop or Interrupted
    return make() if made is None else made


def sum_over_processes(here: int) -> int:
    """The sum of `here` over all processes."""
    if processes().num_processes == 1:
        return here
    total = torch.tensor(here, device=processes().device)
    all_reduce(total, ReduceOp.SUM)
    return int(total)


def any_process(here: bool) -> bool:
    """Whether `here` is true in at least one process."""
    return sum_over_processes(int(here)) > 0
