"""Videos: read, sampled, transformed, collected into datasets, classified.

Each name is imported when it is first used, and optional packages where they are needed.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from aim_adapters.errors import VideoError as VideoError

if TYPE_CHECKING:
    from aim_adapters.recipes import Augmentation as Augmentation
    from aim_adapters.video.answers import parse_views as parse_views
    from aim_adapters.video.answers import spec_of as spec_of
    from aim_adapters.video.checking import CheckReport as CheckReport
    from aim_adapters.video.checking import VideoCheck as VideoCheck
    from aim_adapters.video.checking import check_videos as check_videos
    from aim_adapters.video.clips import ClipReader as ClipReader
    from aim_adapters.video.datasets import AnnotatedVideos as AnnotatedVideos
    from aim_adapters.video.datasets import ClipBatch as ClipBatch
    from aim_adapters.video.datasets import ClipSampler as ClipSampler
    from aim_adapters.video.datasets import Diving48List as Diving48List
    from aim_adapters.video.datasets import HMDB51List as HMDB51List
    from aim_adapters.video.datasets import KineticsList as KineticsList
    from aim_adapters.video.datasets import LitDataVideos as LitDataVideos
    from aim_adapters.video.datasets import LoadedClip as LoadedClip
    from aim_adapters.video.datasets import SkippedVideo as SkippedVideo
    from aim_adapters.video.datasets import SomethingSomethingList as SomethingSomethingList
    from aim_adapters.video.datasets import TrackedClips as TrackedClips
    from aim_adapters.video.datasets import TrackedStream as TrackedStream
    from aim_adapters.video.datasets import UCF101List as UCF101List
    from aim_adapters.video.datasets import VideoDataset as VideoDataset
    from aim_adapters.video.datasets import VideoFolder as VideoFolder
    from aim_adapters.video.datasets import VideoList as VideoList
    from aim_adapters.video.datasets import VideoSample as VideoSample
    from aim_adapters.video.datasets import VideoShards as VideoShards
    from aim_adapters.video.datasets import VideoStream as VideoStream
    from aim_adapters.video.datasets import clip_seed as clip_seed
    from aim_adapters.video.datasets import collate_clips as collate_clips
    from aim_adapters.video.datasets import default_workers as default_workers
    from aim_adapters.video.datasets import mirrored_classes as mirrored_classes
    from aim_adapters.video.datasets import one_thread as one_thread
    from aim_adapters.video.datasets import require_same_labels as require_same_labels
    from aim_adapters.video.datasets import write_shards as write_shards
    from aim_adapters.video.decoding import VideoReader as VideoReader
    from aim_adapters.video.decoding import open_video as open_video
    from aim_adapters.video.evaluation import evaluate as evaluate
    from aim_adapters.video.features import extract_features as extract_features
    from aim_adapters.video.frames import require_frames as require_frames
    from aim_adapters.video.mixing import cutmix as cutmix
    from aim_adapters.video.mixing import mixup as mixup
    from aim_adapters.video.normalization import Normalize as Normalize
    from aim_adapters.video.prediction import list_videos as list_videos
    from aim_adapters.video.prediction import predict as predict
    from aim_adapters.video.prediction import read_views as read_views
    from aim_adapters.video.sampling import dense_indices as dense_indices
    from aim_adapters.video.sampling import uniform_indices as uniform_indices
    from aim_adapters.video.scores import ClassScore as ClassScore
    from aim_adapters.video.scores import Evaluation as Evaluation
    from aim_adapters.video.transforms import ClipTransform as ClipTransform
    from aim_adapters.video.transforms import transform_for as transform_for

_MODULES = {
    "AnnotatedVideos": "datasets",
    "Augmentation": "transforms",
    "CheckReport": "checking",
    "ClassScore": "scores",
    "ClipBatch": "datasets",
    "ClipReader": "clips",
    "ClipSampler": "datasets",
    "ClipTransform": "transforms",
    "Diving48List": "datasets",
    "Evaluation": "scores",
    "HMDB51List": "datasets",
    "KineticsList": "datasets",
    "LitDataVideos": "datasets",
    "LoadedClip": "datasets",
    "Normalize": "normalization",
    "SkippedVideo": "datasets",
    "SomethingSomethingList": "datasets",
    "TrackedClips": "datasets",
    "TrackedStream": "datasets",
    "UCF101List": "datasets",
    "VideoCheck": "checking",
    "VideoDataset": "datasets",
    "VideoFolder": "datasets",
    "VideoList": "datasets",
    "VideoReader": "decoding",
    "VideoSample": "datasets",
    "VideoShards": "datasets",
    "VideoStream": "datasets",
    "check_videos": "checking",
    "clip_seed": "datasets",
    "collate_clips": "datasets",
    "cutmix": "mixing",
    "default_workers": "datasets",
    "dense_indices": "sampling",
    "evaluate": "evaluation",
    "extract_features": "features",
    "list_videos": "prediction",
    "mirrored_classes": "datasets",
    "mixup": "mixing",
    "one_thread": "datasets",
    "open_video": "decoding",
    "parse_views": "answers",
    "predict": "prediction",
    "read_views": "prediction",
    "require_frames": "frames",
    "require_same_labels": "datasets",
    "spec_of": "answers",
    "transform_for": "transforms",
    "uniform_indices": "sampling",
    "write_shards": "datasets",
}

__all__ = ["VideoError", *_MODULES]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES})
