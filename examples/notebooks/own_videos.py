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
# # Your own folder of videos
#
# **What you learn:** the whole way from a folder of videos to a trained model that answers for a new one: check the
# files, read them, wrap an image model, train, evaluate, predict.
#
# The videos here are made of photographs, so that the notebook runs anywhere: a camera that zooms in or out, a picture
# that fades in or out. Put your own folder in place of them, laid out in the same way:
#
# ```text
# train/
#   fade in/   00012.mp4  00031.mp4  …
#   fade out/  …
# test/
#   fade in/   …
# ```
#
# It takes some minutes on two CPU cores, less on a GPU. To run it, open it with the environment `.venv` as its kernel;
# `make quickstart` makes that.

# %%
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

sys.path.insert(0, "..")  # the examples' own modules

import aim_adapters as aim
from aim_adapters.video import VideoFolder, check_videos
from motion_videos import make_videos
from photographs import find_photographs
from pretrained import load_dinov2_small

_ = torch.manual_seed(0)

# %% tags=["parameters"]
cache = Path.home() / ".cache" / "aim-adapters"  # downloads and videos
out = Path("out") / "own-videos"  # what training writes
num_frames, size = 8, 56
train_clips, test_clips = 600, 180
epochs, batch_size = 6, 8
workers = None  # processes that decode; None: by the number of cores
photographs = find_photographs(cache)


def load_backbone():
    """Load DINOv2 ViT-S/14, trained on images only. Any image transformer of timm will do."""
    model = load_dinov2_small(size, cache=cache)
    for block in model.blocks:
        # Fused attention pays on a GPU; on a CPU plain products are faster for frames of so few tokens.
        block.attn.fused_attn = torch.cuda.is_available()
    return model


# %% [markdown]
# ## The folder
#
# Test videos show other photographs than those for training, as yours should show other scenes: else a test tells
# how well the model remembers.

# %%
folder = cache / "videos" / "own-videos"
train_photographs = [path for index, path in enumerate(photographs) if index % 4]
make_videos(train_photographs, folder / "train", clips=train_clips, progress=False)
make_videos(photographs[::4], folder / "test", clips=test_clips, seed=1, progress=False)
for classes in sorted((folder / "train").glob("[!.]*")):
    print(f"{classes.name:<10} {len(list(classes.glob('*.mp4')))} videos")

# %% [markdown]
# Look at the files before you train: every one is opened, and you are told which are broken, and what makes reading
# slow. On the command line this is `aim-adapters check train/`.

# %%
report = check_videos(folder / "train")
print(report)

# %% [markdown]
# ## Read it
#
# Classes are the names of the folders. Of each video, eight frames from equal parts are read.

# %%
train = VideoFolder(folder / "train", num_frames=num_frames)
test = VideoFolder(folder / "test", num_frames=num_frames, labels=train.labels)
print(train.labels)

# %% [markdown]
# ## Wrap an image model
#
# It becomes a video model: its own weights stay frozen, and adapters of a few percent are trained. `labels` gives it a
# classifier, and lets it answer with names later. The upper half of the blocks is enough here, and costs half.

# %%
model = load_backbone()
aim.wrap_image_model(model, num_frames=num_frames, labels=train.labels, layers="top_half")
aim.print_trainable_parameters(model)

# %% [markdown]
# The model knows what it reads, so nothing has to be said about sizes and normalization again:

# %%
aim.clip_spec(model)

# %% [markdown]
# ## Train
#
# `fit` decodes, augments, trains and saves. Interrupted, the same call goes on where it was.

# %%
result = aim.fit(
    model,
    train,
    recipe="small-data",
    epochs=epochs,
    batch_size=batch_size,
    learning_rate=1e-3,
    precision="bf16",
    workers=workers,
    progress=False,
    out=out,
)

figure, axis = plt.subplots(figsize=(5, 2.2), layout="constrained")
window = max(1, len(result.losses) // 20)
axis.plot(torch.tensor(result.losses).unfold(0, window, 1).mean(1).numpy())
axis.set(xlabel="step", ylabel="loss, moving average")
plt.show()

# %% [markdown]
# ## Evaluate
#
# Several clips of each video, whose answers are averaged, give a little more than one: `views="3x1"` takes three in
# time. Accuracy is given for each class too, and the confusion matrix shows what is taken for what.

# %%
evaluation = aim.evaluate(model, test, views="1x1", workers=workers, progress=False)
print(evaluation)

# %%
figure, axis = plt.subplots(figsize=(3.4, 3), layout="constrained")
axis.imshow(evaluation.confusion.numpy(), cmap="Blues")
axis.set_xticks(range(len(train.labels)), train.labels, rotation=45, ha="right", fontsize=8)
axis.set_yticks(range(len(train.labels)), train.labels, fontsize=8)
axis.set(xlabel="answer", ylabel="truth")
plt.show()

# %% [markdown]
# The classes come in pairs that are each other played backwards, so a model that looks at frames one by one guesses
# within a pair, however good it is: at best every other answer is right. What is above that is about time.
#
# ## Use it
#
# `predict` takes a path, bytes, a folder of pictures or an array of frames.

# %%
video = test.samples[0].source
print("it shows:", Path(video).parent.name)
for label, probability in aim.predict(model, video, top=3):
    print(f"{probability:6.1%}  {label}")

# %% [markdown]
# What `fit` has saved is small, and knows the names of the classes and how frames are taken. It goes onto a fresh copy
# of the image model:

# %%
print(f"{(out / 'adapter_model.safetensors').stat().st_size / 1e6:.1f} MB")
fresh = load_backbone()
aim.load_adapters(fresh, out)
fresh.to(next(model.parameters()).device)
again = aim.evaluate(fresh, test, views="1x1", workers=workers, progress=False)
assert torch.equal(again.probabilities, evaluation.probabilities)
print("the same answers, to the bit")

# %% [markdown]
# ## Where to go next
#
# - [Fine-tune on your own videos](../../docs/your-videos.md): lists instead of folders, several GPUs, which settings.
# - `quickstart.ipynb`: the same data with a frozen model beside it, at a larger scale.
# - `share_on_the_hub.ipynb`: give it to others.
# - `look_inside.ipynb`: see what it looks at.
