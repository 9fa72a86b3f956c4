"""One training over several processes, each with a share of every batch (torchrun starts them).

Notable:
- All processes hold the same data and draw the same batches; only the student's features of a
  share are computed in one process alone, and those are all that is gathered.
- Alone, everything here does nothing.
"""

import atexit
from datetime import timedelta
from functools import cache
from typing import Final

import torch
from accelerate import PartialState
from torch import Tensor
from torch.distributed import ReduceOp, all_gather, all_reduce

WAIT: Final = timedelta(days=7)  # for the first process, which encodes all images before training


@cache
def processes() -> PartialState:
    """How many processes train together, which of them this is, and its device.

    Meets the others where torchrun started several: over gloo on CPUs, over NCCL on GPUs.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=WAIT)
    if state.num_processes > 1:
        # Gloo's threads that still run when the interpreter ends abort the whole process.
        atexit.register(state.destroy_process_group)
    return state


def share(batch: int) -> slice:
    """This process's part of a batch, whose size the number of processes divides."""
    size = batch // processes().num_processes
    first = processes().process_index * size
    return slice(first, first + size)


def gather(features: Tensor) -> Tensor:
    """The features [batch, dim] of all processes, from each one's share [batch / processes, dim].

    So every process computes the loss of the whole batch, contrasts between shares included. Its
    gradient flows through this process's own rows alone (the "no gather_with_grad, no local_loss"
    of open_clip), times the number of processes: DistributedDataParallel takes the mean over
    processes of what is a sum over their rows.
    """
    count = processes().num_processes
    if count == 1:
        return features
    every = [torch.empty_like(features) for _ in range(count)]
    all_gather(every, features.detach().contiguous())
    every[processes().process_index] = (
        features.detach() + (features - features.detach()) * count  # the value, to the bit
    )
    return torch.cat(every)


def anywhere(here: bool) -> bool:
    """Whether it is true in any of the processes."""
    if processes().num_processes == 1:
        return here
    found = torch.tensor(int(here), device=processes().device)
    all_reduce(found, ReduceOp.MAX)
    return bool(found)
