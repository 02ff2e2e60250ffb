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
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.insert(0, "..")  # the examples' own modules

import aim_adapters as aim
from motion_videos import CLASSES, decode, make_videos
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
steps, batch_size, lr = 500, 8, 1e-3

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
# Training and test photographs are different ones, so that nothing but the motion can be carried over.

# %%
photographs = find_photographs(cache, photos=photos)
test_photographs = photographs[::4]
train_photographs = [path for path in photographs if path not in test_photographs]
print(f"{len(train_photographs)} photographs for training, {len(test_photographs)} others for the test")


def load_clips(photographs, name, clips, seed):
    """Make video files and decode them to uint8 [clips, T, 3, size, size] and labels [clips]."""
    files = make_videos(photographs, cache / "videos" / f"notebook-{name}", clips=clips, size=size, seed=seed)
    videos = torch.stack([decode(path, num_frames) for path, _ in tqdm(files, desc=f"decode {name}")])
    return videos, torch.tensor([label for _, label in files])


train_videos, train_labels = load_clips(train_photographs, "train", train_clips, seed=0)
test_videos, test_labels = load_clips(test_photographs, "test", test_clips, seed=1)
train_videos.shape, test_videos.shape


# %%
def film_strip(axis, video, title):
    """Show the frames of a uint8 clip [T, 3, S, S] side by side."""
    axis.imshow(torch.cat(list(video), dim=-1).permute(1, 2, 0))
    axis.set_title(title, loc="left", fontsize=9)
    axis.axis("off")


figure, axes = plt.subplots(len(CLASSES), 1, figsize=(9, 1.45 * len(CLASSES)), layout="constrained")
for label, axis in enumerate(axes):
    film_strip(axis, test_videos[int((test_labels == label).nonzero()[0])], CLASSES[label])
plt.show()

# %% [markdown]
# ## Two video models from one image model
#
# `components=()` adds no adapters: the image model looks at each frame, its features are averaged over frames, and a
# classifier is trained. The other model gets temporal, spatial and joint adapters in its upper half.

# %%
image_model = load_backbone()

settings = {"num_frames": num_frames, "num_classes": len(CLASSES), "attention": "eager" if device == "cpu" else "auto"}

frozen = copy.deepcopy(image_model)
aim.wrap_image_model(frozen, **settings, components=())
aim.print_trainable_parameters(frozen)

adapted = copy.deepcopy(image_model)
aim.wrap_image_model(adapted, **settings, layers="top_half")
aim.print_trainable_parameters(adapted)

# %% [markdown]
# ## Training
#
# A plain loop. `adapter_param_groups` holds what trains, and nothing that is frozen.

# %%
mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(3, 1, 1)
std = torch.tensor([0.229, 0.224, 0.225], device=device).view(3, 1, 1)


def logits(model, videos):
    """Normalize a uint8 batch [B, T, 3, S, S] and return logits [B, K]."""
    clips = (videos.to(device) / 255 - mean) / std
    with torch.autocast(device, dtype=torch.bfloat16):
        return model(clips)


def train(model, name):
    """Train on random batches and return the loss of each step."""
    model.to(device).train()
    optimizer = torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=0.05), lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in tqdm(range(steps), desc=name):
        batch = torch.randint(len(train_labels), (batch_size,), generator=generator)
        loss = cross_entropy(logits(model, train_videos[batch]).float(), train_labels[batch].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return losses


@torch.inference_mode()
def predict(model, videos):
    """Return the probabilities [clips, K] of uint8 clips."""
    model.eval()
    return torch.cat([logits(model, batch).float().softmax(1).cpu() for batch in videos.split(16)])


losses = {"frozen, space only": train(frozen, "frozen"), "AIM": train(adapted, "AIM")}

# %%
accuracies = {
    name: (predict(model, test_videos).argmax(1) == test_labels).double().mean().item()
    for name, model in (("frozen, space only", frozen), ("AIM", adapted))
}
for name, accuracy in accuracies.items():
    print(f"{name:<20} {accuracy:6.1%} of {len(test_labels)} clips of unseen photographs")

# %%
figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
for name, values in losses.items():
    window = max(1, len(values) // 25)
    axis.plot(torch.tensor(values).unfold(0, window, 1).mean(1), label=name)
axis.set(xlabel="step", ylabel="loss, moving average")
axis.legend(frameon=False)
plt.show()

# %% [markdown]
# ## Play it backwards
#
# The frozen model gives both directions the same answer, to rounding: it averages over frames. AIM tells them apart.

# %%
clip = test_videos[:1]
for name, model in (("frozen, space only", frozen), ("AIM", adapted)):
    forwards, backwards = predict(model, clip)[0], predict(model, clip.flip(1))[0]
    print(f"{name:<20} forwards: {CLASSES[forwards.argmax()]:<10} backwards: {CLASSES[backwards.argmax()]}")
print(f"{'truth':<20} forwards: {CLASSES[test_labels[0]]:<10} backwards: {CLASSES[test_labels[0] ^ 1]}")

# %% [markdown]
# ## Save, and load into a fresh image model
#
# Only what was trained is saved. Loaded into a fresh copy of the image model it gives the same answers, to the bit.

# %%
aim.save_adapters(adapted, out / "adapters", labels=CLASSES)
megabytes = (out / "adapters" / "adapter_model.safetensors").stat().st_size / 1e6
backbone_megabytes = sum(p.numel() * p.element_size() for p in image_model.parameters()) / 1e6
print(f"adapters {megabytes:.1f} MB, backbone {backbone_megabytes:.1f} MB")

fresh = load_backbone()
aim.load_adapters(fresh, out / "adapters")
fresh.to(device)
assert torch.equal(predict(fresh, test_videos), predict(adapted, test_videos))
print("the same predictions, to the bit")

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
