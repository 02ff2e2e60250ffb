"""How fast does one core read clips, beside loops that use PyAV by hand?

``python -m benchmarks.timing.decoding``. A clip is 8 frames of a video of 300, its short side scaled from 320 pixels to
256, at the paper's stride of 16 or one of each of 8 segments. The videos are written here, as H.264 by x264's defaults,
with a key frame every 12 or every 250 frames. Peers take frames out of the same files: "one pass" seeks to the first
and decodes up to the last; "a seek each" seeks to every one; torchcodec, if it is installed, resizes as well. All give
the same frames, but for the last digits of filters: ours takes more care for color than PyAV's default. Each decodes on
one thread and opens the file anew for every clip, as a data loader does; times are those of its core.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from torch import Tensor

from aim_adapters.video import dense_indices, open_video, uniform_indices
from benchmarks.harness import Timing, report

TARGET = 1 / 0.8
FRAMES, RATE, HEIGHT, WIDTH, SHORT_SIDE = 300, 25, 320, 568, 256
SMALL = (SHORT_SIDE, round(WIDTH * SHORT_SIDE / HEIGHT))
CLIPS = 4
Reader = Callable[[Path, Sequence[int]], Tensor]


def write_video(path: Path, *, key_frames: int) -> Path:
    """Write a video of a camera that moves over a scene, with some noise."""
    draw = np.random.default_rng(0)
    coarse = torch.from_numpy(draw.integers(0, 256, (1, 3, 60, 90)).astype(np.float32))
    scene = torch.nn.functional.interpolate(coarse, size=(960, 1440), mode="bicubic")[0].permute(1, 2, 0).numpy()
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"g": str(key_frames)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(FRAMES):
            y, x = 2 * index, int(400 + 300 * np.sin(index / 40))
            picture = scene[y : y + HEIGHT, x : x + WIDTH] + draw.normal(0, 3, (HEIGHT, WIDTH, 1))
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_ours(path: Path, indices: Sequence[int]) -> Tensor:
    """Read frames with `open_video`."""
    with open_video(path, backend="pyav") as video:
        return video.get_frames(indices, short_side=SHORT_SIDE)


def read_by_hand(path: Path, indices: Sequence[int], *, seeks: bool) -> Tensor:
    """Read frames with PyAV alone, in one pass or with a seek for each, from a video of a constant rate."""
    pictures = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count, stream.codec_context.thread_type = 1, "NONE"
        ticks = 1 / (stream.average_rate * stream.time_base)
        wanted = [round(index * ticks) for index in indices]
        container.seek(wanted[0], stream=stream)
        frames = container.decode(stream)
        for pts in wanted:
            if seeks:
                container.seek(pts, stream=stream)
                frames = container.decode(stream)
            frame = next(frame for frame in frames if frame.pts == pts)
            pictures.append(frame.reformat(SMALL[1], SMALL[0], "rgb24", threads=1).to_ndarray())
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def read_torchcodec(path: Path, indices: Sequence[int]) -> Tensor:
    """Read frames with torchcodec alone."""
    from torchcodec.decoders import VideoDecoder
    from torchvision.transforms.v2 import Resize

    decoder = VideoDecoder(path, num_ffmpeg_threads=1, transforms=[Resize(SMALL)])
    frames: Tensor = decoder.get_frames_at(list(indices)).data
    return frames


def readers(path: Path, indices: Sequence[int]) -> dict[str, Reader]:
    """Return the readers that there are here, each of which gives the frames that ours gives."""
    found: dict[str, Reader] = {
        "ours": read_ours,
        "one pass": functools.partial(read_by_hand, seeks=False),
        "a seek each": functools.partial(read_by_hand, seeks=True),
        "torchcodec": read_torchcodec,
    }
    expected = read_ours(path, indices).float()
    for name, reader in list(found.items()):
        try:
            error = (reader(path, indices).float() - expected).abs().mean()
        except (ImportError, OSError, RuntimeError) as reason:
            if name != "torchcodec":
                raise
            print(f"  without torchcodec: {str(reason).splitlines()[0]}")
            del found[name]
        else:
            if error > 6:  # frames 16 apart differ by 70
                raise AssertionError(f"{name!r} gives other frames")
    return found


def read_all(reader: Reader, path: Path, clips: Sequence[Sequence[int]]) -> None:
    """Read several clips, one after the other."""
    for indices in clips:
        reader(path, indices)


def cpu_seconds_in_turn(runs: Mapping[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Time several calls in turn by the core's own clock: each runs on one thread, and other work does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(1 + repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            seconds[name].append(time.process_time() - start)
    return {name: times[1:] for name, times in seconds.items()}


def main() -> int:
    """Measure, write the result, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    details, ratios = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for key_frames in (12, 250):
            path = write_video(Path(folder) / f"{key_frames}.mp4", key_frames=key_frames)
            for sampling in ("stride 16", "segments"):
                seeds = (torch.Generator().manual_seed(seed) for seed in range(CLIPS))
                clips = [
                    dense_indices(FRAMES, 8, 16, generator=seed)[0].tolist()
                    if sampling == "stride 16"
                    else uniform_indices(FRAMES, 8, generator=seed)[0].tolist()
                    for seed in seeds
                ]
                found = readers(path, clips[0])
                runs = {name: functools.partial(read_all, reader, path, clips) for name, reader in found.items()}
                seconds = cpu_seconds_in_turn(runs, repeats)
                case = f"{sampling}, key frames every {key_frames}"
                median = {name: statistics.median(times) / CLIPS for name, times in seconds.items()}
                ratios[case] = median["ours"] / min(median["one pass"], median["a seek each"])
                print(f"  {case}: " + ", ".join(f"{name} {1 / each:.0f} clips/s" for name, each in median.items()))
                for name, times in seconds.items():
                    details[f"{name}, {case}"] = Timing.of([each / CLIPS for each in times])
    return report(
        "decoding",
        "a clip read by one core, at worst, as a multiple of the faster of two loops over PyAV",
        ratio=max(ratios.values()),
        target=TARGET,
        details=details,
        also={"ratios": ratios},
    )


if __name__ == "__main__":
    sys.exit(main())
