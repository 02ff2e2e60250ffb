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
# # A backbone of your own
#
# **What you learn:** how to tell aim-adapters about an image transformer that comes from no library, in some thirty
# lines and without changing the model. After that everything works on it: adapters, training, saving, attention maps.
#
# The model here is small enough to be trained on images in this notebook, in seconds: it reads handwritten digits of
# 8 × 8 pixels, which scikit-learn ships. Then it learns a task that no single image can answer: do the digits of a clip
# count **up** or **down**?

# %%
import tempfile

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

import aim_adapters as aim
from aim_adapters.anatomy import BackboneAnatomy, BlockAnatomy, HeadAnatomy

_ = torch.manual_seed(0)

# %% tags=["parameters"]
image_epochs, video_epochs = 15, 15
num_clips = 800

# %% [markdown]
# ## The image model, as you may have written it
#
# A plain pre-norm vision transformer. Nothing in it knows about video or about aim-adapters.


# %%
class SelfAttention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # each [B, H, N, d]
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Layer(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm_a, self.attention = nn.LayerNorm(width), SelfAttention(width, heads)
        self.norm_b, self.mlp = (
            nn.LayerNorm(width),
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)),
        )

    def forward(self, x):
        x = x + self.attention(self.norm_a(x))
        return x + self.mlp(self.norm_b(x))


class DigitViT(nn.Module):
    def __init__(self, width=48, heads=4, depth=3, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(1, width, 2, stride=2)  # 8 x 8 pixels -> 16 patches
        self.position = nn.Parameter(0.02 * torch.randn(1, 16, width))
        self.enter = nn.Identity()
        self.layers = nn.ModuleList(Layer(width, heads) for _ in range(depth))
        self.final_norm = nn.LayerNorm(width)
        self.classifier = nn.Linear(width, classes)

    def forward(self, images):
        x = self.enter(self.patches(images).flatten(2).transpose(1, 2) + self.position)
        for layer in self.layers:
            x = layer(x)
        return self.classifier(self.final_norm(x).mean(1))


# %% [markdown]
# We train it on images first, as backbones are.

# %%
digits = load_digits()
images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1  # [N, 1, 8, 8] in [-1, 1]
numbers = torch.tensor(digits.target)
train_images, train_numbers, test_images, test_numbers = images[:1400], numbers[:1400], images[1400:], numbers[1400:]


def train(model, parameters, inputs, targets, *, epochs, lr, batch=50):
    """Train with plain AdamW, and return the loss of each epoch."""
    optimizer = torch.optim.AdamW(parameters, lr=lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=epochs * (len(inputs) // batch))
    losses = []
    model.train()
    for _ in range(epochs):
        total = 0.0
        for chosen in torch.randperm(len(inputs)).split(batch)[: len(inputs) // batch]:
            loss = F.cross_entropy(model(inputs[chosen]), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / (len(inputs) // batch))
    model.eval()
    return losses


@torch.no_grad()
def accuracy(model, inputs, targets):
    return (model(inputs).argmax(-1) == targets).float().mean().item()


image_model = DigitViT()
train(image_model, image_model.parameters(), train_images, train_numbers, epochs=image_epochs, lr=3e-3)
print(f"digits read right: {accuracy(image_model, test_images, test_numbers):.1%} of {len(test_images)} it never saw")

# %% [markdown]
# ## Its descriptor
#
# Handed this model now, aim-adapters does not guess. It says what it knows, and what to do:

# %%
try:
    aim.wrap_image_model(image_model, num_frames=4, num_classes=2)
except aim.UnsupportedModelError as error:
    print(error)

# %% [markdown]
# A descriptor answers two questions.
#
# **How is a block built?** `BlockAnatomy` names the attention, the MLP and the norms before them, and gives a few
# functions that read the attention: its queries, keys and values, its output layer, the factor on its scores. The
# temporal attention of AIM *reuses* the image model's own attention weights over the frames, and needs nothing else.


# %%
def project_qkv(attention, h):
    """Return queries, keys and values, each `[B, N, H, d]`, of tokens `[B, N, D]`."""
    return attention.qkv(h).unflatten(-1, (3, attention.heads, -1)).unbind(-3)


def project_out(attention, o, h):
    """Project `[B, N, H, d]`, what attention gave, back to `[B, N, D]`."""
    return attention.out(o.flatten(-2))


LAYER = BlockAnatomy(
    attention="attention",
    mlp="mlp",
    pre_attention="norm_a",
    post_attention=None,  # a norm behind the attention, which some models have
    pre_mlp="norm_b",
    post_mlp=None,
    project_qkv=project_qkv,
    project_out=project_out,
    attend=lambda layer, h: layer.attention(h),  # the model's own attention inside of a frame
    softmax_scale=lambda attention: (attention.qkv.in_features // attention.heads) ** -0.5,
    heads=lambda attention: attention.heads,
)

# %% [markdown]
# **Where are the blocks, and what is around them?** `BackboneAnatomy` says it with the names of sub-modules. The
# descriptor's `read` returns it for models it knows, and None for all others.


# %%
def read(model):
    """Say where things are in a DigitViT."""
    if type(model) is not DigitViT:
        return None
    width = model.final_norm.normalized_shape[0]
    return BackboneAnatomy(
        family="digit_vit",
        root="",
        input_name="images",  # the argument of forward that takes pixels
        blocks=tuple((f"layers.{i}", LAYER) for i in range(len(model.layers))),
        block_widths=(width,) * len(model.layers),
        entry="enter",  # where the tokens with their positions come by, before the first block
        entry_side="input",
        norm="final_norm",
        heads=(HeadAnatomy("classifier"),),
        output_width=width,
        in_channels=1,
        patch_size=(2, 2),
        prefix_tokens=0,  # no [class] token
        image_size=(8, 8),
    )


_ = aim.register_backbone(aim.Backbone(name="digit_vit", library="", describes="the ViT of this notebook", read=read))

# %% [markdown]
# That is all. A package of your own can announce its descriptor as an entry point instead, so that nobody has to call
# `register_backbone`; `examples/custom_backbone.py` shows that, and how the branches of a block run fused.
#
# ## Is it right?
#
# A wrapped model starts as the image model, averaged over frames. So there is an exact test for your descriptor: with
# no `num_classes`, the answer for a clip must be the answer for its frames.

# %%
with torch.no_grad():
    expected = image_model(test_images[:1])
    model = aim.wrap_image_model(image_model, num_frames=4, input_layout="BTCHW")
    model.eval()
    still = test_images[:1, None].expand(1, 4, -1, -1, -1)  # one picture, four times
    print("largest difference:", (model(still) - expected).abs().max().item())
_ = aim.unwrap_image_model(model)

# %% [markdown]
# ## A task about time
#
# A clip is four digits that follow one another, each in another hand. Both classes are made of the same pictures; only
# their order tells them apart.


# %%
def make_clips(images, numbers, count):
    """Make clips `[count, 4, 1, 8, 8]` that count up (0) or down (1)."""
    of = [images[numbers == number] for number in range(10)]
    clips, labels = [], torch.arange(count) % 2
    for label in labels.tolist():
        start = int(torch.randint(7, ()))
        frames = [of[start + i][int(torch.randint(len(of[start + i]), ()))] for i in range(4)]
        clips.append(torch.stack(frames[::-1] if label else frames))
    return torch.stack(clips), labels


train_clips, train_labels = make_clips(train_images, train_numbers, num_clips)
test_clips, test_labels = make_clips(test_images, test_numbers, 400)

figure, axes = plt.subplots(2, 1, figsize=(4, 2.4), layout="constrained")
for axis, clip, name in zip(axes, test_clips, ("up", "down"), strict=False):
    axis.imshow(torch.cat(list(clip), dim=-1)[0].numpy(), cmap="gray_r")
    axis.set_title(name, loc="left", fontsize=9)
    axis.axis("off")
plt.show()

# %% [markdown]
# Two models again: one whose classifier alone is trained, on features averaged over the frames, and one with adapters.

# %%
settings = {"num_frames": 4, "num_classes": 2, "input_layout": "BTCHW"}
results = {}
for name, components in (("frozen", ()), ("AIM", ("temporal", "spatial", "joint"))):
    torch.manual_seed(0)
    model = aim.wrap_image_model(image_model, **settings, components=components)
    count = aim.count_parameters(model)
    train(model, aim.trainable_parameters(model), train_clips, train_labels, epochs=video_epochs, lr=3e-3)
    results[name] = accuracy(model, test_clips, test_labels)
    print(f"{name:>6}: {count.trainable:,} parameters trained, {results[name]:.1%} of test clips right")
    if name == "frozen":
        aim.unwrap_image_model(model)

# %% [markdown]
# Guessing gives 50 %, and a model that averages over frames can do no better: both orders have the same average. The
# adapters make the same frozen weights look across time.
#
# ## Everything else works too
#
# Saving and loading need nothing more from you; nor do attention maps:

# %%
with tempfile.TemporaryDirectory() as folder, torch.no_grad():
    aim.save_adapters(model, folder)
    answers = model(test_clips)
    aim.unwrap_image_model(model)  # the image model again, as it was
    aim.load_adapters(model, folder)
    model.eval()
    assert torch.equal(model(test_clips), answers)
print("saved, unwrapped, loaded: the same answers, to the bit")

maps = aim.attention_maps(model, test_clips[:1])
figure, axis = plt.subplots(figsize=(2.6, 2.6), layout="constrained")
axis.imshow(maps.temporal()[0].numpy(), cmap="Blues", vmin=0)
axis.set(title="last block, mean of heads", xlabel="looks at frame", ylabel="frame", xticks=range(4), yticks=range(4))
plt.show()

# %% [markdown]
# ## Where to go next
#
# - `examples/custom_backbone.py`: the same as a script, with fused branches.
# - [Backbones](../../docs/backbones.md): which families need no descriptor at all.
# - [The API of descriptors](../../docs/api/backbones.md): every field.
# - `look_inside.ipynb`: see what it looks at.
