"""Baselines are what they say, train what they say, go through fit and evaluate, and come back to the bit."""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from timm.models.swin_transformer import SwinTransformer
from torch import Tensor, nn
from torchvision.models.video import SwinTransformer3d
from torchvision.models.vision_transformer import VisionTransformer

import aim_adapters as aim
from aim_adapters.recipes import get_recipe
from aim_adapters.training import Baseline, build_baseline, list_baselines, load_baseline, save_baseline
from aim_adapters.training.schedule import make_groups
from tests.backbones import test_open_clip_vit
from tests.backbones.cases import scramble
from tests.tiny import FRAMES, base, video
from tests.training.cases import CLASSES, fit, folder

SIZE: dict[str, Any] = {
    "image_size": 16, "patch_size": 8, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64,
}  # fmt: skip


def swin() -> nn.Module:
    return SwinTransformer(img_size=32, patch_size=4, embed_dim=16, depths=(2,), num_heads=(2,), window_size=4)


def torchvision_vit() -> nn.Module:
    return VisionTransformer(16, 8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=5)


def open_clip_vit() -> nn.Module:
    return next(case for case in test_open_clip_vit.CASES if case.name == "class_token").build()


def hf_vit() -> nn.Module:
    return hf.ViTForImageClassification(hf.ViTConfig(**SIZE, num_labels=5))


def clip_with_an_unused_norm() -> nn.Module:
    return hf.CLIPForImageClassification(hf.CLIPConfig(vision_config=SIZE, text_config={"num_hidden_layers": 1}))


def timesformer() -> nn.Module:
    return hf.TimesformerForVideoClassification(hf.TimesformerConfig(**SIZE, num_frames=FRAMES, num_labels=5))


def video_swin() -> nn.Module:
    return SwinTransformer3d([2, 4, 4], 16, [1, 1], [2, 2], [2, 2, 2], num_classes=5)


IMAGE_MODELS = (base, swin, torchvision_vit, open_clip_vit, hf_vit)
OVER_FRAMES = ("full-space-time", "lora-temporal")
VIDEO_MODELS = {"timesformer": timesformer, "video-swin": video_swin}


def build(name: str, make: Callable[[], nn.Module] = base, **settings: Any) -> Any:
    """Return a baseline around a small model, with the same weights each time."""
    settings = {"num_frames": FRAMES, "num_classes": 3, **settings}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = scramble(VIDEO_MODELS.get(name, make)())
        return build_baseline(name, model=model, **settings)


def clips(model: nn.Module) -> Tensor:
    size = 32 if any(isinstance(module, SwinTransformer) for module in model.modules()) else 16
    return torch.randn(2, FRAMES, 3, size, size, generator=torch.Generator().manual_seed(0))


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def step(model: nn.Module) -> None:
    """Take one step that all that trains has a part in."""
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    torch.manual_seed(0)
    nn.functional.cross_entropy(model(clips(model)), torch.tensor([0, 2])).backward()
    optimizer.step()
    model.eval()


@pytest.mark.parametrize("make", IMAGE_MODELS)
@pytest.mark.parametrize("name", ["full", "lora", "probe", "full-space-time", "lora-temporal"])
def test_an_untrained_baseline_is_the_frozen_image_model(name: str, make: Callable[..., nn.Module]) -> None:
    if (make is swin and name in OVER_FRAMES) or (name == "lora-temporal" and make in (torchvision_vit, open_clip_vit)):
        with pytest.raises(aim.UnsupportedModelError, match=r"plain vision transformer|nothing over frames"):
            build(name, make)
        return
    model = build(name, make).eval()
    frozen = build("frozen", make).eval()
    with torch.no_grad():
        for head in (module for path, module in frozen.named_modules() if path.endswith("aim.head")):
            head.load_state_dict((model.probe if name == "probe" else model).head.state_dict())
        expected = frozen(clips(model))
        expected = expected if isinstance(expected, Tensor) else expected.logits
        torch.testing.assert_close(model(clips(model)), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", [row.name for row in list_baselines()])
def test_what_is_said_to_train_trains_and_comes_back_to_the_bit(name: str, tmp_path: Path) -> None:
    model = build(name, labels=CLASSES, num_classes=None)
    before, frozen = trained(model), {n: p.clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert model(clips(model)).shape == (2, 3)
    step(model)
    step(model)  # behind up-projections of zero there is no gradient in the first
    after = trained(model)
    assert before.keys() == after.keys() and not any(torch.equal(before[key], after[key]) for key in before)
    assert all(torch.equal(frozen[key], value) for key, value in model.named_parameters() if key in frozen)
    parts = ("spatial", "temporal.", "joint", "lora_B", "probe.")
    kinds = {part for part in parts if any(part in key for key in after)}
    ladder = {"frozen": 0, "spatial": 1, "temporal": 2, "joint": 3}
    expected = {
        "full-space-time": {"temporal."}, "lora": {"lora_B"}, "lora-temporal": {"lora_B", "temporal."},
        "probe": {"probe."}, "attentive-probe": {"probe."},
    }.get(name, {*parts[: ladder.get(name, 0)]})  # fmt: skip
    assert kinds == expected
    if name in ("full", "full-space-time", *VIDEO_MODELS):
        assert not frozen
    save_baseline(model, tmp_path / "saved")
    loaded = build(name, labels=CLASSES, num_classes=None).eval()
    load_baseline(loaded, tmp_path / "saved")
    assert torch.equal(loaded(clips(model)), model(clips(model)))
    assert copy.deepcopy(loaded)(clips(model)).equal(model(clips(model)))


@pytest.mark.parametrize("name", ["probe", "attentive-probe", "full-space-time", "lora-temporal"])
def test_a_step_reads_no_value_so_that_it_can_be_captured(name: str) -> None:
    model = build(name).to("meta")
    with torch.autocast("cpu", torch.bfloat16):
        out = model(video().to("meta"))
    out.float().sum().backward()  # on the meta device there are no values to read
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_rungs_count_what_table_1_counts() -> None:
    counts = []
    for name in ("frozen", "spatial", "temporal", "joint"):
        with torch.device("meta"):
            image_model = timm.create_model("vit_base_patch16_224.augreg_in21k")
            rung = build_baseline(name, model=image_model, num_classes=174, recipe="ssv2-in21k-vit-b16-8f")
        count = aim.count_parameters(rung)
        counts.append((round(count.trainable / 1e6, 1), round(count.total / 1e6)))
    assert counts == [(0.1, 86), (3.7, 89), (10.8, 97), (14.3, 100)]


def test_what_gets_no_gradient_does_not_train() -> None:
    model = build("full", clip_with_an_unused_norm)
    assert {key for key, p in model.named_parameters() if not p.requires_grad} == {
        f"image_model.vision_model.post_layernorm.{leaf}" for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize("name", ["full", "lora", "attentive-probe", "lora-temporal"])
def test_a_baseline_goes_through_fit_and_evaluate_and_on_from_a_checkpoint(name: str, tmp_path: Path) -> None:
    def make() -> Any:
        return build(name, lambda: base("vit_tiny_patch16_224.test"), labels=CLASSES, num_classes=None)

    model, recipe = make(), "small-data"
    result = fit(model, tmp_path / "run", test=folder("test"), save_every=3, recipe=recipe, learning_rate=1e-3)
    assert result.evaluation is not None and len(result.losses) == 8
    other = make()
    load_baseline(other, tmp_path / "run")
    assert aim.clip_spec(other) == aim.clip_spec(model) and aim.clip_spec(model).labels == CLASSES
    assert aim.evaluate(other, folder("test"), "3x1", workers=0, progress=False).top1 == result.evaluation.top1
    resumed = make()
    at = tmp_path / "run" / "checkpoints" / "step-0000006"
    again = fit(resumed, tmp_path / "other", recipe=recipe, learning_rate=1e-3, resume=at)
    assert again.losses == result.losses
    assert all(torch.equal(value, trained(model)[key]) for key, value in trained(resumed).items())


def test_clips_are_sampled_as_the_recipe_says_and_positions_do_not_decay(tmp_path: Path) -> None:
    model = build("full", lambda: base("vit_tiny_patch16_224.test"), labels=CLASSES, num_classes=None)
    fit(model, tmp_path / "run", epochs=1, recipe=dataclasses.replace(get_recipe("small-data"), stride=2))
    assert aim.clip_spec(model).stride == 2
    decays, stays = {}, {}
    for group in make_groups(model, rate=1.0, head_rate=2.0, weight_decay=0.1):
        for parameter in group["params"]:
            (decays if group["weight_decay"] else stays)[id(parameter)] = group["lr"]
    assert id(model.image_model.pos_embed) in stays and id(model.image_model.cls_token) in stays
    assert decays[id(model.head.weight)] == 2.0 and decays[id(model.image_model.blocks[0].attn.qkv.weight)] == 1.0


class Quantized(nn.Linear):
    def __init__(self) -> None:
        super().__init__(32, 32)
        self.weight = nn.Parameter(torch.zeros(32, 32, dtype=torch.int8), requires_grad=False)


def with_int8() -> nn.Module:
    model = base()
    model.blocks[0].attn.proj = Quantized()  # type: ignore[index, union-attr]
    return model


WRONG: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "name": (lambda: build("best"), aim.ConfigError, "name must be one of 'frozen', 'spatial'"),
    "no classes": (lambda: build("full", num_classes=None), aim.ConfigError, "pass labels="),
    "no class": (lambda: build("lora", num_classes=0), aim.ConfigError, "pass labels="),
    "two names": (lambda: build("joint", labels=["a", "a"], num_classes=None), aim.ConfigError, "twice"),
    "frames": (lambda: build("timesformer", num_frames=0), aim.ConfigError, "num_frames"),
    "rank": (lambda: build("lora", rank=0), aim.ConfigError, "rank must be"),
    "a large rank": (lambda: build("lora", rank=33), aim.ConfigError, "rank must be at most .*, 32"),
    "rank over frames": (lambda: build("lora-temporal", rank=33), aim.ConfigError, "rank must be at most .*, 32"),
    "recipe": (lambda: build("full", recipe="k400"), aim.ConfigError, "no recipe 'k400'"),
    "no model": (lambda: build_baseline("full", num_classes=3), aim.ConfigError, "built around an image model"),
    "a string": (lambda: build_baseline("full", num_classes=3, model="vit"), TypeError, "expected a torch.nn.Module"),  # type: ignore[arg-type]
    "an image model": (
        lambda: build_baseline("timesformer", num_classes=3, model=base()), TypeError, "Timesformer"
    ),
    "another one": (lambda: build_baseline("video-swin", num_classes=3, model=base()), TypeError, "SwinTransformer3d"),
    "wrapped": (lambda: build("full", lambda: aim.wrap_image_model(base(), 4)), aim.StateError, "wrapped already"),
    "wrapped, for a probe": (
        lambda: build("attentive-probe", lambda: aim.wrap_image_model(base(), 4)), aim.StateError, "wrapped already"
    ),
    "int8 over frames": (
        lambda: build_baseline("full-space-time", num_classes=3, model=with_int8()), aim.UnsupportedModelError, "quant"
    ),
    "hidden states": (lambda: build("full", lambda: hf.ViTModel(hf.ViTConfig(**SIZE))), aim.ConfigError, "no place"),
    "int8": (lambda: build_baseline("full", num_classes=3, model=with_int8()), aim.UnsupportedModelError, "quantized"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
@pytest.mark.filterwarnings("ignore:the image model looks untrained")
def test_wrong_arguments_are_refused(case: str) -> None:
    call, error, message = WRONG[case]
    with pytest.raises(error, match=message):
        call()


def test_lora_that_would_do_nothing_is_refused_and_changes_nothing() -> None:
    from torchvision.models.swin_transformer import SwinTransformer as Other

    with torch.random.fork_rng():
        model = scramble(Other([4, 4], 16, [2], [2], [2, 2], num_classes=5)).train()
    types = {key: type(module) for key, module in model.named_modules()}
    with pytest.raises(aim.UnsupportedModelError, match=r"LoRA would do nothing in features\.1\.0\.attn\.qkv"):
        build_baseline("lora", model=model, num_classes=3)
    assert types == {key: type(module) for key, module in model.named_modules()}
    assert all(module.training and not module._forward_hooks for module in model.modules())


def test_wrong_clips_and_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("full")
    with pytest.raises(aim.InputError, match=r"must be \[B, T, C, H, W\]"):
        model(video().transpose(1, 2))
    with pytest.raises(aim.InputError, match=r"got torch\.uint8"):
        build("video-swin")(video().to(torch.uint8))
    with pytest.raises(aim.CheckpointError, match=r"trained\.safetensors cannot be read"):
        load_baseline(model, tmp_path)
    for other, message in (
        (build("lora"), "name='lora', this one has 'full'"),
        (build("full", num_frames=2), "frames=2, this one has 4"),
        (build("full", num_classes=4), "is of another model"),
    ):
        save_baseline(other, tmp_path)
        before = trained(model)
        with pytest.raises(aim.CheckpointError, match=message):
            load_baseline(model, tmp_path)
        assert all(torch.equal(value, trained(model)[key]) for key, value in before.items())
    for call in (save_baseline, load_baseline):
        with pytest.raises(TypeError, match="must be what build_baseline returned, got VisionTransformer"):
            call(base(), tmp_path)
    with pytest.raises(aim.ConfigError, match="got 3 labels for a model with 4 classes"):
        fit(build("full", lambda: base("vit_tiny_patch16_224.test"), num_classes=4), tmp_path / "run")
    with pytest.raises(aim.ConfigError, match="does not say its mean, std"):
        aim.clip_spec(build("full", hf_vit))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match="pip install peft"):
        build("lora")


def test_the_list_shows_every_baseline() -> None:
    assert isinstance(build("full"), Baseline)
    assert all(row.name in str(list_baselines()) for row in list_baselines())
