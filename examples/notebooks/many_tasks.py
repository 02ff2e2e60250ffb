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
# # Many tasks on one backbone
#
# **What you learn:** how one frozen image model in memory serves several video tasks, each with adapters and a
# classifier of its own: add them, train each, switch between them, average them, and what that costs.
#
# The data is small and real: handwritten digits of 8 × 8 pixels, which scikit-learn ships. A clip is four digits that
# count up or down. Two tasks: which **direction** does it count in, and what is the **last** digit? The image model is
# a small ViT of timm that learns to read digits first; it all takes about a minute.

# %%
import tempfile
import time
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

import aim_adapters as aim

_ = torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())

# %% tags=["parameters"]
image_epochs, video_epochs = 15, 15
num_clips = 800

# %% [markdown]
# ## The image model

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # [N, 1, 8, 8] in [-1, 1]
numbers = torch.tensor(digits.target)
train_images, train_numbers, test_images, test_numbers = images[:1400], numbers[:1400], images[1400:], numbers[1400:]


def train(model, parameters, inputs, targets, *, epochs, lr=3e-3, batch=50):
    """Train with plain AdamW."""
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * (len(inputs) // batch))
    model.train()
    for _epoch in range(epochs):
        for chosen in torch.randperm(len(inputs)).split(batch)[: len(inputs) // batch]:
            loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def accuracy(model, inputs, targets):
    return (model(inputs).argmax(-1) == targets).float().mean().item()


size = {"img_size": 8, "patch_size": 2, "in_chans": 1, "embed_dim": 48, "depth": 3, "num_heads": 4}
model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **size)
train(model, model.parameters(), train_images, train_numbers, epochs=image_epochs)
weights = {key: tensor.clone() for key, tensor in model.state_dict().items()}
print(f"digits read right: {accuracy(model, test_images, test_numbers):.1%}")


# %% [markdown]
# ## Two tasks


# %%
def make_clips(images, numbers, count):
    """Make clips `[count, 4, 1, 8, 8]`, and for each task what is right."""
    of = [images[numbers == number] for number in range(10)]
    clips, right = [], {"direction": [], "last": []}
    for index in range(count):
        start = int(torch.randint(7, ()))
        sequence = list(range(start, start + 4))[:: 1 if index % 2 else -1]
        clips.append(torch.stack([of[digit][int(torch.randint(len(of[digit]), ()))] for digit in sequence]))
        right["direction"].append(index % 2)
        right["last"].append(sequence[-1])
    return torch.stack(clips), {task: torch.tensor(labels) for task, labels in right.items()}


LABELS = {"direction": ("down", "up"), "last": tuple(str(digit) for digit in range(10))}
train_clips, train_labels = make_clips(train_images, train_numbers, num_clips)
test_clips, test_labels = make_clips(test_images, test_numbers, 400)

# %% [markdown]
# ## One backbone, two adapters
#
# Wrapping gives the model its first adapter, which is called `"default"`. Others are added. They may differ in
# everything: frames, classes, blocks, width. Here the second is wider, and has other classes.

# %%
aim.wrap_image_model(model, num_frames=4, labels=LABELS["direction"], input_layout="BTCHW")
aim.add_adapter(model, "last", aim.AIMConfig(num_frames=4, bottleneck=0.5), labels=LABELS["last"])
NAMES = {"direction": "default", "last": "last"}  # which adapter answers which question

for name, config in aim.list_adapters(model).items():
    print(f"{name}: {config.num_classes} classes, adapters of {config.bottleneck:.0%} of the model's width")

# %% [markdown]
# ## Train each
#
# `set_adapter` chooses the one that runs. It alone trains: the parameters of all others, and of the image model,
# require no gradient meanwhile. An optimizer keeps the parameters that it was given, so make one for each. `aim.fit`
# does the same; the plain loop above shows that nothing is hidden.

# %%
for task, name in NAMES.items():
    aim.set_adapter(model, name)
    train(model, aim.trainable_parameters(model), train_clips, train_labels[task], epochs=video_epochs)
    print(f"{task}: {accuracy(model, test_clips, test_labels[task]):.1%} of test clips right")

# %% [markdown]
# Training the second has not touched the first:

# %%
aim.set_adapter(model, "default")
print(f"direction: still {accuracy(model, test_clips, test_labels['direction']):.1%}")

# %% [markdown]
# ## Switch
#
# One model in memory answers both questions about the same clip. Switching copies nothing.

# %%
for task, name in NAMES.items():
    aim.set_adapter(model, name)
    with torch.no_grad():
        answer = LABELS[task][int(model(test_clips[:1]).argmax())]
    print(f"{task}: {answer} (right is {LABELS[task][int(test_labels[task][0])]})")

started = time.perf_counter()
for _repeat in range(10):
    for name in NAMES.values():
        aim.set_adapter(model, name)
milliseconds = 1000 * (time.perf_counter() - started) / 20
print("switching takes", "less than 20 ms" if milliseconds < 20 else f"{milliseconds:.0f} ms")

# %% [markdown]
# ## Files
#
# Each file holds one adapter, and nothing of the image model. Loaded under a name that the model has not, an adapter is
# added beside the others.

# %%
for task, name in NAMES.items():
    aim.save_adapters(model, folder / task, name=name)
    print(f"{task}: {(folder / task / 'adapter_model.safetensors').stat().st_size:,} bytes")

aim.load_adapters(model, folder / "direction", name="direction again")
print(list(aim.list_adapters(model)))

# %% [markdown]
# ## What it costs
#
# Each further task costs its adapters, not a model. In a model of real size they are a few percent of it: of CLIP's
# ViT-B/16 eight tasks take 86 + 8 × 11 million parameters, and eight models of their own 8 × 86 million. Of this toy:

# %%
backbone = sum(tensor.numel() for tensor in weights.values())
for task, name in NAMES.items():
    aim.set_adapter(model, name)
    print(f"{task}: {aim.count_parameters(model).trainable:,} parameters; the image model has {backbone:,}")

# %% [markdown]
# ## Average
#
# Adapters of one origin and the same settings can be averaged into one, a
# [model soup](https://arxiv.org/abs/2203.05482), which costs no more than each of them. The copy that was loaded above
# is trained on for a while, and averaged with its origin.

# %%
right = test_labels["direction"]
scores = {}
aim.set_adapter(model, "default")
scores["as it was"] = accuracy(model, test_clips, right)
aim.set_adapter(model, "direction again")
train(
    model,
    aim.trainable_parameters(model),
    train_clips,
    train_labels["direction"],
    epochs=max(1, video_epochs // 3),
    lr=1e-3,
)
scores["trained on"] = accuracy(model, test_clips, right)
aim.average_adapters(model, ["default", "direction again"], into="soup")
aim.set_adapter(model, "soup")
scores["average"] = accuracy(model, test_clips, right)
for name, score in scores.items():
    print(f"{name:>10}: {score:.1%}")

# %% [markdown]
# ## Clean up
#
# An adapter that is not needed any more is deleted; without adapters the image model is what it was.

# %%
aim.set_adapter(model, "default")
for name in ("soup", "direction again"):
    aim.delete_adapter(model, name)
print(list(aim.list_adapters(model)))

aim.unwrap_image_model(model)
assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
print("the image model is unchanged")

# %% [markdown]
# ## Where to go next
#
# - [Several adapters](../../docs/several-adapters.md): files, names, what trains when.
# - `share_on_the_hub.ipynb`: publish each of them.
# - `own_videos.ipynb`: one task, step by step, on video files.
