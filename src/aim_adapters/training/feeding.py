"""Batches of clips for training: in an order and with random choices that depend on the run's seed alone."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from aim_adapters.clip_spec import ClipSpec
from aim_adapters.errors import ConfigError
from aim_adapters.recipes import Recipe
from aim_adapters.video.clips import ClipReader
from aim_adapters.video.datasets import ClipSampler, TrackedClips, VideoDataset, VideoStream, collate_clips
from aim_adapters.video.transforms import ClipTransform, ModelTransform
