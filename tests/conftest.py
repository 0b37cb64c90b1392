"""Nothing in the tests may ask a hub or a W&B server for anything.

A process computes in one thread: pytest has a process per core, and models of this size wait longer for
threads than they compute.
"""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("OMP_NUM_THREADS", "1")
