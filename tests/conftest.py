"""One thread a process: for models this tiny, threads that wait for each other are slow."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
