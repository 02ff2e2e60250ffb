"""Collections of videos with their classes: folders, lists, published annotations, shards."""

from aim_adapters.video.datasets.annotated import AnnotatedVideos
from aim_adapters.video.datasets.csv_list import VideoList
from aim_adapters.video.datasets.dataset import LoadedClip, VideoDataset
from aim_adapters.video.datasets.files import VIDEO_EXTENSIONS, content_of, user_path
from aim_adapters.video.datasets.folder import VideoFolder
from aim_adapters.video.datasets.labels import mirrored_classes, require_same_labels
from aim_adapters.video.datasets.loading import ClipBatch, TrackedClips, collate_clips, default_workers, one_thread
from aim_adapters.video.datasets.published import (
    Diving48List,
    HMDB51List,
    KineticsList,
    SomethingSomethingList,
    UCF101List,
)
from aim_adapters.video.datasets.sampler import ClipSampler, clip_seed
from aim_adapters.video.datasets.samples import Samples, SkippedVideo, VideoSample
from aim_adapters.video.datasets.shards import VideoShards, write_shards
from aim_adapters.video.datasets.skipping import NotesSkipped
from aim_adapters.video.datasets.streams import LitDataVideos, TrackedStream, VideoStream

__all__ = [
    "VIDEO_EXTENSIONS",
    "AnnotatedVideos",
    "ClipBatch",
    "ClipSampler",
    "Diving48List",
    "HMDB51List",
    "KineticsList",
    "LitDataVideos",
    "LoadedClip",
    "NotesSkipped",
    "Samples",
    "SkippedVideo",
    "SomethingSomethingList",
    "TrackedClips",
    "TrackedStream",
    "UCF101List",
    "VideoDataset",
    "VideoFolder",
    "VideoList",
    "VideoSample",
    "VideoShards",
    "VideoStream",
    "clip_seed",
    "collate_clips",
    "content_of",
    "default_workers",
    "mirrored_classes",
    "one_thread",
    "require_same_labels",
    "user_path",
    "write_shards",
]
