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
# # Share on the Hub
#
# **What you learn:** how to put trained adapters on the [Hugging Face Hub](https://huggingface.co) with one call, what
# is in the repository then, how others load it in one line, and how to keep several versions apart.
#
# Adapters are small: the image model stays where it is, and only what was trained travels.
#
# *How this notebook was run:* without a network, against a stand-in for the Hub in this process. That is what the
# next cell starts. With an account of your own, leave that cell out and log in once, with `hf auth login` in a
# terminal; all other cells stay as they are, but for the name `me/…`.

# %%
import sys

sys.path.insert(0, "..")  # the examples' own modules
from local_hub import start_hub

_ = start_hub()

# %%
import warnings
from pathlib import Path

import timm
import torch
from huggingface_hub import HfApi, hf_hub_download

import aim_adapters as aim

warnings.filterwarnings("ignore", "the image model looks untrained")  # so it is, see below
_ = torch.manual_seed(0)

# %% [markdown]
# ## A trained model
#
# What is shared here has learned nothing: the image model is a small one with random weights, so that this notebook
# runs anywhere in seconds. It has its own repository on the Hub, as yours has: adapters name the image model that they
# were trained on, and it is fetched when they are loaded.

# %%
CLASSES = ("opening", "closing", "nothing")
SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 3, "num_heads": 2}

small = timm.create_model("vit_tiny_patch16_224", num_classes=0, **SIZE)
_ = timm.models.push_to_hf_hub(small, "me/small-vit", model_args=SIZE)

# %%
backbone = timm.create_model("hf-hub:me/small-vit", pretrained=True, num_classes=0)
model = aim.wrap_image_model(backbone, num_frames=4, labels=CLASSES)

video = torch.randn(1, 4, 3, 32, 32)
optimizer = torch.optim.AdamW(aim.adapter_param_groups(model, weight_decay=0.05), lr=1e-3)
torch.nn.functional.cross_entropy(model.train()(video), torch.tensor([1])).backward()  # one step of training
optimizer.step()
model.eval()
aim.print_trainable_parameters(model)

# %% [markdown]
# ## Push
#
# One call makes the repository, writes everything in one commit, and returns the id of that commit. What you say about
# data and results goes into the model card.

# %%
first = aim.push_to_hub(model, "me/doors", license="mit", datasets=["me/door-videos"], metrics={"accuracy": 0.75})
for file in HfApi().model_info("me/doors").siblings:
    size = Path(hf_hub_download("me/doors", file.rfilename)).stat().st_size
    print(f"{size:>9,} bytes  {file.rfilename}")

# %% [markdown]
# The weights are those of the adapters and the classifier. `adapter_config.json` holds the settings, the names of the
# classes, what the model reads, and which image model belongs under it. The card holds the same for people, and code
# that runs as written:

# %%
card = Path(hf_hub_download("me/doors", "README.md")).read_text()
print(card[: card.index("## Citation")])

# %% [markdown]
# ## Pull
#
# One line, on any machine: the image model that the adapters name is fetched, wrapped and filled.

# %%
loaded = aim.load_video_model("me/doors").eval()
with torch.no_grad():
    assert torch.equal(loaded(video), model(video))
print("the same answers, to the bit")

# %% [markdown]
# It can also go onto an image model that you have already. The report says what was loaded.

# %%
mine = timm.create_model("hf-hub:me/small-vit", pretrained=True, num_classes=0)
report = aim.load_adapters(mine, "me/doors")
print(report)

# %% [markdown]
# ## Versions
#
# A push never overwrites history: every commit stays. Pass the id that `push_to_hub` returned as `revision`, and nobody
# can change what you load. A branch keeps an experiment apart, a subfolder keeps several checkpoints side by side.

# %%
with torch.no_grad():
    for parameter in aim.trainable_parameters(model):
        parameter.mul_(1.1)  # "trained on"
aim.push_to_hub(model, "me/doors")
aim.push_to_hub(model, "me/doors", branch="experiment", subfolder="runs/best")

then = aim.load_video_model("me/doors", revision=first).eval()
now = aim.load_video_model("me/doors").eval()
best = aim.load_video_model("me/doors", revision="experiment", subfolder="runs/best").eval()
with torch.no_grad():
    assert torch.equal(then(video), loaded(video))
    assert not torch.equal(now(video), loaded(video))
    assert torch.equal(best(video), now(video))
print("the first version is still there")

# %% [markdown]
# ## When something is wrong
#
# Whatever fails, the model is left as it was, and the message says what was asked for and what helps.

# %%
try:
    aim.load_video_model("me/windows")
except aim.CheckpointError as error:
    print(error)

# %% [markdown]
# ## Where to go next
#
# - [Sharing on the Hub](../../docs/hub.md): private repositories, pull requests, tokens, mirrors, working offline.
# - [Saving and loading](../../docs/saving.md): what is in the files.
# - `own_videos.ipynb`: train something worth sharing.
# - `many_tasks.ipynb`: several adapters on one image model.
