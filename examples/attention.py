"""Draws what a model looks at in a video: an animated picture with its attention over the clip, and a film strip.

Of a trained model it also draws the frozen model beside it. Without adapters it is the image model itself, DINOv2
ViT-S/14, frame by frame, before anything is trained.

    python examples/attention.py clip.mp4
    python examples/attention.py clip.mp4 --adapters out/my-model    # a folder or Hub id of your own
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.analysis import compare_variants, film_strip, overlay, save_gif
from aim_adapters.video import ClipTransform, Normalize, open_video, uniform_indices
from pretrained import load_dinov2_small


def read_clip(path: Path, model: nn.Module) -> tuple[Tensor, Tensor]:
    """Read frames that are spread evenly over a video.

    Args:
        path: the video.
        model: a wrapped model, which says how many frames it reads and of what size.

    Returns:
        The frames as they are shown, uint8 `[T, 3, H, W]`, and as the model reads them, `[1, T, 3, H, W]`.
    """
    spec = aim.clip_spec(model)
    with open_video(path) as video:
        frames = video.get_frames(uniform_indices(len(video), spec.frames)[0])
    frames = ClipTransform(spec.image_size)(frames)
    return frames, Normalize(spec.mean, spec.std)(frames)[None]


def main(
    argv: Sequence[str] | None = None, *, load_backbone: Callable[[tuple[int, int]], nn.Module] | None = None
) -> Tensor:
    """Draw the pictures.

    Args:
        argv: command line, by default the process's own.
        load_backbone: loads an image model for frames of a height and width, by default DINOv2 ViT-S/14.

    Returns:
        The frames with attention over them, uint8 `[T, 3, H, W]`.
    """
    args = parse(argv)
    if args.adapters:
        model = aim.load_video_model(args.adapters)
    else:
        size = (args.height, args.width)
        backbone = load_backbone(size) if load_backbone else load_dinov2_small(size, cache=args.cache)
        model = aim.wrap_image_model(backbone, num_frames=args.frames)
    frames, video = read_clip(args.clip, model)
    maps = aim.attention_maps(model, video, blocks=[args.block])
    painted = overlay(frames, maps.spatial(args.block)[0], opacity=0.75)

    args.out.mkdir(parents=True, exist_ok=True)
    save_gif(painted, args.out / "attention.webp", fps=args.fps)
    strip = film_strip({"Clip": frames, "Attention": painted}, columns=4, height=126)
    strip.quantize(256, kmeans=3).save(args.out / "attention.png", optimize=True)  # a third of the bytes
    if args.adapters:
        compare_variants(model, video, frames, block=args.block).save(args.out / "variants.png")
    print(f"{', '.join(sorted(path.name for path in args.out.iterdir()))} in {args.out}: {maps}")
    return painted


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    add = parser.add_argument
    add("clip", type=Path, help="a video")
    add("--adapters", help="a folder or Hub id of a trained model; by default DINOv2 ViT-S/14 as it is")
    add("--block", type=int, default=-1, help="the block whose attention is drawn (%(default)s: the last)")
    add("--frames", type=int, default=32, help="frames of a clip, without adapters (%(default)s)")
    add("--height", type=int, default=252, help="pixels of a frame, a multiple of 14, without adapters (%(default)s)")
    add("--width", type=int, default=448, help="likewise (%(default)s)")
    add("--fps", type=float, default=8, help="frames of the picture in a second (%(default)s)")
    add("--cache", type=Path, default=Path.home() / ".cache" / "aim-adapters", help="downloads (%(default)s)")
    add("--out", type=Path, default=Path("out") / "attention", help="the pictures (%(default)s)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
