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
# # Zero-shot video with CLIP
#
# **What you learn:** how to make CLIP read videos while its text tower stays as it is: classes are sentences, so there
# is no classifier to train. Then, how adapters teach it sentences about motion, which no single frame can answer.
#
# **Weights.** The notebook takes OpenAI's CLIP ViT-B/32 from the Hugging Face Hub. Where the Hub cannot be reached, it
# takes a tiny CLIP with random weights instead, and says so below. Then all the mechanics are the same, but *the words
# mean nothing to it*: its zero-shot answers are noise.

# %%
import copy
import sys
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import open_clip
import skimage
import torch
import torch.nn.functional as F
from PIL import Image

sys.path.insert(0, "..")  # the examples' own modules

import aim_adapters as aim
from aim_adapters.video import transform_for
from motion_videos import plan, render
from pretrained import hub_unreachable

_ = torch.manual_seed(0)

# %% tags=["parameters"]
num_frames = 8
train_clips, test_clips = 160, 80
epochs, batch_size = 8, 16
why = hub_unreachable("timm/vit_base_patch32_clip_224.openai", "open_clip_model.safetensors")

# %%
if why is None:
    clip = open_clip.create_model("ViT-B-32-quickgelu", pretrained="openai")
    print("CLIP ViT-B/32 of OpenAI, from the Hub")
else:
    warnings.filterwarnings("ignore", "the image model looks untrained")
    vision = {"image_size": 32, "patch_size": 8, "width": 128, "layers": 4, "head_width": 32}
    text = {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 2, "layers": 2}
    clip = open_clip.CLIP(embed_dim=64, vision_cfg=vision, text_cfg=text)
    normalization = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    open_clip.model.set_model_preprocess_cfg(clip, {"size": (32, 32), **normalization})
    print("The Hub cannot be reached: a tiny CLIP with RANDOM weights. Its zero-shot answers are noise.")
clip.eval()
tokenizer = open_clip.get_tokenizer("ViT-B-32-quickgelu")

# %% [markdown]
# ## Clips and sentences
#
# Four pictures that scikit-image ships fade in, or out.

# %%
SENTENCES = {
    "astronaut.png": "a photo of an astronaut",
    "chelsea.png": "a photo of a cat",
    "coffee.png": "a photo of a cup of coffee",
    "rocket.jpg": "a photo of a rocket",
}
pictures = [Image.open(Path(skimage.__file__).parent / "data" / name).convert("RGB") for name in SENTENCES]


def make_clips(count, seed):
    """Return clips, each a list of frames, with the picture and the motion of each: a fade in (0) or out (1)."""
    plans = [clip for clip in plan(pictures, clips=3 * count, seed=seed) if clip.motion == 1]
    clips = [render(pictures[each.photograph], each, size=64, frames=num_frames) for each in plans]
    return clips, torch.tensor([each.photograph for each in plans]), torch.tensor([each.label - 2 for each in plans])


clips, shown, _ = make_clips(4, seed=2)
figure, axes = plt.subplots(2, 1, figsize=(5, 1.3), layout="constrained")
for axis, frames in zip(axes, clips, strict=False):
    strip = Image.new("RGB", (64 * num_frames, 64))
    for index, frame in enumerate(frames):
        strip.paste(frame, (64 * index, 0))
    axis.imshow(strip)
    axis.axis("off")
plt.show()

# %% [markdown]
# ## CLIP reads videos
#
# One line wraps the whole model. `encode_image` now takes clips `[B, T, 3, H, W]`; `encode_text` is untouched.

# %%
image_clip = copy.deepcopy(clip)  # for the comparison below
aim.wrap_image_model(clip, num_frames=num_frames)
clip.eval()
transform = transform_for(clip)


def to_video(clips):
    """Turn lists of frames into what the model reads, `[B, T, 3, S, S]`."""
    frames = torch.tensor(np.array([[np.asarray(frame) for frame in clip] for clip in clips]))  # [B, T, h, w, 3]
    return torch.stack([transform(each) for each in frames.permute(0, 1, 4, 2, 3)])


def similarities(clip, video, sentences):
    """Return the cosine of every clip with every sentence, `[B, K]`."""
    words = clip.encode_text(tokenizer(sentences), normalize=True)  # [K, D]
    return clip.encode_image(video, normalize=True) @ words.T


# %% [markdown]
# Before training a clip's embedding is exactly that of CLIP, averaged over its frames, so nothing CLIP knows is lost:

# %%
video = to_video(clips)
with torch.no_grad():
    embedding = clip.encode_image(video)
    averaged = image_clip.encode_image(video.flatten(0, 1)).unflatten(0, (len(video), num_frames)).mean(1)
difference = ((embedding - averaged).norm() / averaged.norm()).item()
assert difference < 1e-5
print("clips' embeddings equal the averages of their frames', to float32 rounding")

# %% [markdown]
# ## Zero-shot: what is in the clip?
#
# The class is the sentence that is nearest. Change the sentences, and you have another classifier.

# %%
sentences = list(SENTENCES.values())
with torch.no_grad():
    probabilities = (clip.logit_scale.exp() * similarities(clip, video, sentences)).softmax(-1)
for row, truth in zip(probabilities, shown, strict=True):
    best = int(row.argmax())
    print(f"{sentences[truth]:<28} -> {sentences[best]:<28} {row[best]:.0%}")
if why is not None:
    print("(random weights: these answers mean nothing)")

# %% [markdown]
# ## Sentences about time
#
# *The picture gets brighter* and *the picture gets darker* show the same frames in another order, and averaged frames
# have none. So zero-shot CLIP can only guess here, whatever its weights:

# %%
MOTIONS = ["the picture gets brighter", "the picture gets darker"]
train_frames, _, train_labels = make_clips(train_clips, seed=0)
test_frames, _, test_labels = make_clips(test_clips, seed=1)
train_video, test_video = to_video(train_frames), to_video(test_frames)


@torch.no_grad()
def accuracy(video, labels):
    return (similarities(clip, video, MOTIONS).argmax(-1) == labels).float().mean().item()


print(f"{len(test_video)} test clips, {accuracy(test_video, test_labels):.0%} right before training")

# %% [markdown]
# The adapters are trained to bring each clip close to its sentence. There is no classifier: the sentences' embeddings,
# which stay as they are, are the classes.

# %%
with torch.no_grad():
    words = clip.encode_text(tokenizer(MOTIONS), normalize=True)
aim.print_trainable_parameters(clip)
optimizer = torch.optim.AdamW(aim.adapter_param_groups(clip, weight_decay=0.05), lr=2e-3)
clip.train()
for _epoch in range(epochs):
    for chosen in torch.randperm(len(train_video)).split(batch_size):
        # 100 is the factor that CLIP was pre-trained with.
        logits = 100 * clip.encode_image(train_video[chosen], normalize=True) @ words.T
        loss = F.cross_entropy(logits, train_labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
clip.eval()
print(f"{accuracy(test_video, test_labels):.0%} right after training")

# %% [markdown]
# Played backwards, the same clips are told the other way round. That is how you see that it is the order that counts:

# %%
flipped = accuracy(test_video.flip(1), 1 - test_labels)
print(f"{flipped:.0%} of the clips played backwards are right too, with the other sentence")

# %% [markdown]
# And CLIP as it was is still there:

# %%
with torch.no_grad(), aim.disable_adapters(clip):
    difference = ((clip.encode_image(video) - averaged).norm() / averaged.norm()).item()
assert difference < 1e-5
print("without the adapters: the averages of the frames again")

# %% [markdown]
# ## Where to go next
#
# - [Backbones](../../docs/backbones.md): which CLIP, SigLIP and EVA-CLIP models can be wrapped.
# - `own_videos.ipynb`: with a classifier, for a folder of videos.
# - `many_tasks.ipynb`: several adapters on one CLIP.
