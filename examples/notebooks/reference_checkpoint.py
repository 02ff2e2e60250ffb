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
# # A checkpoint of the reference
#
# **What you learn:** how to run a `.pth` file that the authors of AIM published, how to turn it into small files of
# this library, what is checked on the way, and how to see for yourself that the answers are right.
#
# The published files are large, so this notebook makes a small one of the same format first: same keys, same shapes but
# for their size, random numbers. With a published file, skip that cell; all else is the same:
#
# ```python
# model = timm.create_model("vit_base_patch16_clip_quickgelu_224.openai", pretrained=True)
# aim.load_official_checkpoint(model, "vit_b_clip_8frame_k400.pth")
# ```

# %%
import tempfile
from pathlib import Path

import timm
import torch
import torch.nn.functional as F

import aim_adapters as aim

_ = torch.manual_seed(0)
folder = Path(tempfile.mkdtemp())

# %% [markdown]
# ## The file
#
# A CLIP of two blocks, width 64 and patches of 16 pixels, for clips of 4 frames of 32 pixels and 10 classes.

# %%
D, T, K, WIDTH, DEPTH, PATCH, SIZE = 64, 4, 10, 16, 2, 16, 32


def linear(name, rows, columns):
    return {f"{name}.weight": torch.randn(rows, columns) / columns**0.5, f"{name}.bias": torch.randn(rows) / 10}


def norm(name):
    return {f"{name}.weight": 1 + torch.randn(D) / 10, f"{name}.bias": torch.randn(D) / 10}


backbone = {
    "class_embedding": torch.randn(D),
    "positional_embedding": torch.randn(1 + (SIZE // PATCH) ** 2, D),
    "conv1.weight": torch.randn(D, 3, PATCH, PATCH) / 30,
    "temporal_embedding": torch.randn(1, T, D) / 10,
    **norm("ln_pre"),
    **norm("ln_post"),
}
for i in range(DEPTH):
    block = f"transformer.resblocks.{i}"
    attention = linear(f"{block}.attn.in_proj", 3 * D, D)
    backbone |= {key.replace("in_proj.", "in_proj_"): tensor for key, tensor in attention.items()}
    backbone |= linear(f"{block}.attn.out_proj", D, D) | norm(f"{block}.ln_1") | norm(f"{block}.ln_2")
    backbone |= linear(f"{block}.mlp.c_fc", 4 * D, D) | linear(f"{block}.mlp.c_proj", D, 4 * D)
    for adapter in ("T_Adapter", "S_Adapter", "MLP_Adapter"):
        backbone |= linear(f"{block}.{adapter}.D_fc1", WIDTH, D) | linear(f"{block}.{adapter}.D_fc2", D, WIDTH)
state = {f"backbone.{key}": tensor for key, tensor in backbone.items()} | linear("cls_head.fc_cls", K, D)

path = folder / "reference.pth"
torch.save({"meta": {"epoch": 30}, "state_dict": state}, path)
print(f"{len(state)} tensors, {path.stat().st_size:,} bytes")

# %% [markdown]
# ## Load it
#
# The image model must be the one that was adapted. Here its weights come from the file too (`backbone="fill"`), as
# nobody published ours; the default, `backbone="verify"`, compares the weights of your pre-trained model with those in
# the file, and refuses a model of other weights.
#
# A `.pth` file is a pickle. It is read as data: no code in it runs.

# %%
small = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": D, "depth": DEPTH, "num_heads": 1, "num_classes": 0}
model = timm.create_model("vit_base_patch16_clip_quickgelu_224", **small)
aim.load_official_checkpoint(model, path, backbone="fill")
model.eval()
aim.print_trainable_parameters(model)

# %% [markdown]
# Frames, adapter width, classes and which adapters there are were read from the shapes in the file:

# %%
aim.list_adapters(model)["default"]

# %% [markdown]
# ## Are the answers right?
#
# The library checks it before it changes your model: it runs the model on an image with the file's weights and compares
# each step with the reference's formulas. But you need not believe it. Here is the reference's computation once more,
# written down from the paper and its code with nothing but matrix products.


# %%
def reference(video):
    """Compute the logits `[B, K]` of clips `[B, T, 3, S, S]` from the tensors in the file."""

    def apply(name, x):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def normalize(name, x):
        return F.layer_norm(x, (D,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-5)

    def attend(block, x):  # [batch, tokens, D], one head
        q, k, v = F.linear(x, state[f"{block}.attn.in_proj_weight"], state[f"{block}.attn.in_proj_bias"]).chunk(3, -1)
        return apply(f"{block}.attn.out_proj", (q @ k.mT / D**0.5).softmax(-1) @ v)

    def adapter(name, x, skip):
        y = apply(f"{name}.D_fc2", F.gelu(apply(f"{name}.D_fc1", x)))
        return x + y if skip else y

    clips = len(video)
    x = F.conv2d(video.flatten(0, 1), state["backbone.conv1.weight"], stride=PATCH).flatten(2).mT  # [B T, N, D]
    x = torch.cat([state["backbone.class_embedding"].expand(len(x), 1, D), x], 1)
    x = x + state["backbone.positional_embedding"]
    x = (x.unflatten(0, (clips, T)) + state["backbone.temporal_embedding"][0][:, None]).flatten(0, 1)
    x = normalize("backbone.ln_pre", x)
    for i in range(DEPTH):
        block = f"backbone.transformer.resblocks.{i}"
        over_time = x.unflatten(0, (clips, T)).transpose(1, 2).flatten(0, 1)  # [B N, T, D]
        over_time = adapter(f"{block}.T_Adapter", attend(block, normalize(f"{block}.ln_1", over_time)), skip=False)
        x = x + over_time.unflatten(0, (clips, -1)).transpose(1, 2).flatten(0, 1)
        x = x + adapter(f"{block}.S_Adapter", attend(block, normalize(f"{block}.ln_1", x)), skip=True)
        h = normalize(f"{block}.ln_2", x)
        inner = apply(f"{block}.mlp.c_fc", h)
        mlp = apply(f"{block}.mlp.c_proj", inner * torch.sigmoid(1.702 * inner))  # CLIP's QuickGELU
        x = x + mlp + 0.5 * adapter(f"{block}.MLP_Adapter", h, skip=False)
    features = normalize("backbone.ln_post", x)[:, 0].unflatten(0, (clips, T)).mean(1)  # [class], mean of frames
    return apply("cls_head.fc_cls", features)


video = torch.randn(2, T, 3, SIZE, SIZE)
with torch.no_grad():
    logits, expected = model(video), reference(video)
difference = ((logits - expected).norm() / expected.norm()).item()
assert difference < 1e-5
print(f"relative difference: {difference:.0e}")

# %% [markdown]
# ## Convert it
#
# `convert_official_checkpoint` writes adapters and classifier in the format of this library, without the backbone:
# small files that `load_adapters` reads, and that can go on the Hub.

# %%
aim.unwrap_image_model(model)  # the image model, with the weights that the file brought
aim.convert_official_checkpoint(model, path, folder / "converted")
for file in sorted((folder / "converted").iterdir()):
    print(f"{file.stat().st_size:>9,} bytes  {file.name}")

aim.load_adapters(model, folder / "converted")
with torch.no_grad():
    assert torch.equal(model.eval()(video), logits)
print("the same logits, to the bit")

# %% [markdown]
# ## The wrong image model
#
# The most common mistake is a model that fits in all its shapes and computes something else: CLIP of OpenAI has
# *QuickGELU*, most others GELU. Such a model would run, and be wrong. It is refused, with the first step that differs:

# %%
other = timm.create_model("vit_base_patch16_clip_224", **small)
try:
    aim.load_official_checkpoint(other, path, backbone="fill")
except aim.AIMError as error:
    print(error)

# %% [markdown]
# ## Where to go next
#
# - [Checkpoints of the reference](../../docs/reference-checkpoints.md): which image model belongs to which file, and
#   what no file says (scale, dropout).
# - `share_on_the_hub.ipynb`: publish what you converted.
# - `look_inside.ipynb`: see what it looks at.
