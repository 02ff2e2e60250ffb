# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Look inside
#
# **What you learn:** to see what a video model looks at, in space and in time, what each kind of adapter changes about
# that, and how far the pictures can be trusted.
#
# It looks into the model that `own_videos.ipynb` has trained, so run that first; or name a model of your own, a folder
# or a repository of the Hub. The frames are small, and so is the grid of patches that attention is about: 4 × 4.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt

sys.path.insert(0, "..")  # the examples' own modules

import aim_adapters as aim
from aim_adapters.analysis import compare_variants, deletion_curves, explain, film_strip, frame_order, overlay
from aim_adapters.video import ClipTransform, Normalize, open_video, uniform_indices
from pretrained import load_dinov2_small

# %% tags=["parameters"]
cache = Path.home() / ".cache" / "aim-adapters"
out = Path("out") / "own-videos"
videos = cache / "videos" / "own-videos" / "test"


def load_model():
    """Load the image model, and the adapters that were trained. In most cases `aim.load_video_model(out)` will do."""
    model = load_dinov2_small(56, cache=cache)
    aim.load_adapters(model, out)
    return model.eval()


# %% [markdown]
# ## A clip
#
# Two versions of it are needed: the frames as they are shown, and as the model reads them.

# %%
model = load_model()
spec = aim.clip_spec(model)
path = sorted((videos / "fade in").glob("*.mp4"))[0]
with open_video(path) as video:
    frames = video.get_frames(uniform_indices(len(video), spec.frames)[0])
frames = ClipTransform(spec.image_size)(frames)  # uint8 [T, 3, H, W]
clip = Normalize(spec.mean, spec.std)(frames)[None]  # float [1, T, 3, H, W]
for label, probability in aim.predict(model, path, top=2):
    print(f"{probability:.0%} {label}")

# %% [markdown]
# ## Where it looks in a frame
#
# `attention_maps` runs the model once and keeps the attention of every block and head. `spatial` is the attention of
# the [class] token, or of a patch of your choice, over the patches of each frame; `overlay` paints it over the frames.

# %%
maps = aim.attention_maps(model, clip, target=0)
print(maps)
rows = {
    "Clip": frames,
    "First block": overlay(frames, maps.spatial(0)[0]),
    "Last block": overlay(frames, maps.spatial(-1)[0]),
    "Rollout": overlay(frames, maps.rollout()[0]),
}
film_strip(rows, height=48)

# %% [markdown]
# *Rollout* follows the attention through all blocks (Abnar and Zuidema, 2020). With `target=`, `maps.relevance()`
# weighs it by what matters for one class (Chefer et al., 2021).
#
# ## Where it looks in time
#
# `temporal` is the attention of each frame over all frames. A model that ignored time would look the same from
# everywhere.

# %%
adapted = maps.temporal_blocks
figure, axes = plt.subplots(1, len(adapted), figsize=(1.5 * len(adapted), 1.8), layout="constrained", squeeze=False)
for axis, block in zip(axes[0], adapted, strict=True):
    axis.imshow(maps.temporal(block)[0].numpy(), cmap="Blues", vmin=0)
    axis.set_title(f"block {block}", fontsize=8)
    axis.set_xticks([])
    axis.set_yticks([])
plt.show()

# %% [markdown]
# ## What the adapters change
#
# The paper's Figure 4: the frozen image model, with the spatial adapters, with the temporal ones besides, and all of
# them. `components=` of `attention_maps` does the same for maps of your choice.

# %%
compare_variants(model, clip, frames, height=48)

# %% [markdown]
# ## Can it be trusted?
#
# A map is a claim: *this is what the answer depends on*. It can be tested. Patches are removed, the most attended ones
# first, and we watch how fast the probability of the answer falls; removing patches at random, and the least attended
# first, is the comparison. A map that tells nothing falls no faster than chance.

# %%
print(deletion_curves(model, clip, maps.rollout(), steps=5, draws=2))

# %% [markdown]
# Where a whole picture fades, no patch says more than another, so that maps over patches can hardly pass. Then what the
# model looks at in space is not why it answers as it does.
#
# Is it about time, then? The same frames are shown reversed, shuffled, and one frame over and over. If nothing
# changes, the model does not use their order.

# %%
print(frame_order(model, clip))

# %% [markdown]
# ## All of it in one page
#
# `explain` puts everything together: the clip plays with the attention over it, and you choose block, head, frame and
# variant. In a notebook, an explanation on the last line of a cell is shown; `save` writes one HTML file that needs
# nothing else. On the command line it is `aim-adapters explain clip.mp4 --adapters out/`.

# %%
explanation = explain(model, path, top=3)
explanation.save(out / "report.html")
print(f"report.html: {(out / 'report.html').stat().st_size / 1e6:.1f} MB")

# %% [markdown]
# ## Where to go next
#
# - [Seeing what a model looks at](../../docs/seeing.md): every kind of map, GIF and MP4, how to read them.
# - `examples/attention.py`: the same as a script, for a video of yours.
# - `own_videos.ipynb`: train the model that is looked into here.
