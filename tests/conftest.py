"""Shared by all tests: one thread, so that a sum has one order; no hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"

import torch

torch.set_num_threads(1)
