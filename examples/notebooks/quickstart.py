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
# # An image transformer learns what happens in time
#
# The story of `examples/quickstart.py`, at notebook scale and with room to look around.
#
# Real photographs become short H.264 videos. Their classes come in pairs that are each other played backwards: *zoom
# in* and *zoom out*, *fade in* and *fade out*, *focus in* and *focus out*. Both classes of a pair hold the same frames,
# so a model that ignores their order can do no better than to guess within a pair.
#
# We take a pre-trained image transformer and train two video models from it: one frozen, with a new classifier on its
# averaged frames, and one with AIM's adapters. It takes some minutes on two CPU cores, less on a GPU.
#
# To run it, open it with the environment `.venv` as its kernel; `make quickstart` makes that.

# %%
import copy
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

sys.path.insert(0, "..")  # the examples' own modules

import aim_adapters as aim
from aim_adapters.video import VideoFolder, open_video, uniform_indices
from motion_videos import CLASSES, make_videos
from photographs import find_photographs
from pretrained import load_dinov2_small

# %% [markdown]
# ## Settings

# %% tags=["parameters"]
cache = Path.home() / ".cache" / "aim-adapters"  # downloads and videos; examples/quickstart.py shares it
out = Path("out")  # adapters
photos = None  # a folder of your own photographs, or None to fetch some
num_frames, size = 8, 56
train_clips, test_clips = 900, 240
epochs, batch_size, lr = 5, 8, 1e-3

device = "cuda" if torch.cuda.is_available() else "cpu"


def load_backbone():
    """Load DINOv2 ViT-S/14: 22 million parameters, trained on images only."""
    model = load_dinov2_small(size, cache=cache)
    for block in model.blocks:
        # Fused attention pays on a GPU; on a CPU plain products are faster for frames of so few tokens.
        block.attn.fused_attn = device != "cpu"
    return model


# %% [markdown]
# ## Videos
#
# Training and test photographs are different ones, so that nothing but the motion can be carried over. The videos lie
# in a folder for each class, as yours would.

# %%
photographs = find_photographs(cache, photos=photos)
test_photographs = photographs[::4]
train_photographs = [path for path in photographs if path not in test_photographs]
print(f"{len(train_photographs)} photographs for training, {len(test_photographs)} others for the test")

folders = cache / "videos"
make_videos(train_photographs, folders / "notebook-train", clips=train_clips, seed=0, progress=False)
make_videos(test_photographs, folders / "notebook-test", clips=test_clips, seed=1, progress=False)
train = VideoFolder(folders / "notebook-train", num_frames=num_frames, labels=CLASSES)
test = VideoFolder(folders / "notebook-test", num_frames=num_frames, labels=CLASSES)
train


# %%
def film_strip(axis, path, title):
    """Show the frames that a model sees side by side."""
    with open_video(path) as video:
        frames = video.get_frames(uniform_indices(len(video), num_frames)[0])  # uint8 [T, 3, S, S]
    axis.imshow(torch.cat(list(frames), dim=-1).permute(1, 2, 0).numpy())
    axis.set_title(title, loc="left", fontsize=9)
    axis.axis("off")


figure, axes = plt.subplots(len(CLASSES), 1, figsize=(6, len(CLASSES)), layout="constrained")
for label, axis in enumerate(axes):
    sample = next(sample for sample in test.samples if sample.label == label)
    film_strip(axis, sample.source, CLASSES[label])
plt.show()

# %% [markdown]
# ## Two video models from one image model
#
# `components=()` adds no adapters: the image model looks at each frame, its features are averaged over frames, and a
# classifier is trained. The other model gets temporal, spatial and joint adapters in its upper half.

# %%
image_model = load_backbone()

settings = {"num_frames": num_frames, "labels": CLASSES, "attention": "eager" if device == "cpu" else "auto"}

frozen = copy.deepcopy(image_model)
aim.wrap_image_model(frozen, **settings, components=())
aim.print_trainable_parameters(frozen)

adapted = copy.deepcopy(image_model)
aim.wrap_image_model(adapted, **settings, layers="top_half")
aim.print_trainable_parameters(adapted)

# %% [markdown]
# A model knows what it reads: the size of its frames and their normalization. `fit`, `evaluate` and `predict` use it.

# %%
aim.clip_spec(adapted)

# %% [markdown]
# ## Training


# %%
def train_on_clips(model, name):
    """Train with the recipe for small data."""
    return aim.fit(
        model,
        train,
        recipe="small-data",
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=lr,
        precision="bf16",
        progress=False,
        out=out / name,
    )


runs = {"frozen": train_on_clips(frozen, "frozen"), "AIM": train_on_clips(adapted, "AIM")}

# %%
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, run in runs.items():
    window = max(1, len(run.losses) // 25)
    axis.plot(torch.tensor(run.losses).unfold(0, window, 1).mean(1).numpy(), label=name)
axis.set(xlabel="step", ylabel="loss, moving average")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Evaluation

# %%
evaluations = {
    name: aim.evaluate(model, test, views="1x1", progress=False)
    for name, model in (("frozen", frozen), ("AIM", adapted))
}
for name, evaluation in evaluations.items():
    print(name, evaluation)

# %% [markdown]
# The frozen model averages over frames, so it cannot tell a class from its twin: the same frames, in the other order.

# %%
figure, axes = plt.subplots(1, 2, figsize=(9, 4), layout="constrained", sharey=True)
for axis, (name, evaluation) in zip(axes, evaluations.items(), strict=True):
    axis.imshow(evaluation.confusion.numpy(), cmap="Blues")
    axis.set_title(name)
    axis.set_xticks(range(len(CLASSES)), CLASSES, rotation=45, ha="right")
    axis.set_yticks(range(len(CLASSES)), CLASSES)
plt.show()

# %% [markdown]
# ## Save, and load into a fresh image model
#
# `fit` has saved what was trained, and only that. Loaded into a fresh copy of the image model it gives the same
# answers, to the bit.

# %%
megabytes = (out / "AIM" / "adapter_model.safetensors").stat().st_size / 1e6
backbone_megabytes = sum(p.numel() * p.element_size() for p in image_model.parameters()) / 1e6
print(f"adapters {megabytes:.1f} MB, backbone {backbone_megabytes:.1f} MB")

fresh = load_backbone()
aim.load_adapters(fresh, out / "AIM")
fresh.to(device)
again = aim.evaluate(fresh, test, views="1x1", progress=False)
assert torch.equal(again.probabilities, evaluations["AIM"].probabilities)
print("the same predictions, to the bit")

# %%
aim.predict(fresh, test.samples[0].source, top=3)

# %% [markdown]
# ## And back
#
# Under the adapters the image model is what it was.

# %%
aim.unwrap_image_model(adapted)
before, after = image_model.state_dict(), adapted.cpu().state_dict()
assert before.keys() == after.keys()
assert all(torch.equal(before[key], after[key]) for key in before)
print("the image model is unchanged")
