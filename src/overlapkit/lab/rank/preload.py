"""Imports once, for all ranks that are forked from a process, what every rank on a CPU needs."""

from __future__ import annotations

import torch

from overlapkit.lab.rank.cuda_stand_in import stand_in_for_cuda

# A pool of threads would not survive the fork.
torch.set_num_threads(1)
stand_in_for_cuda()

# After the stand-in: it imports the rest of Megatron-Core.
import overlapkit.lab.rank.block  # noqa: E402, F401
