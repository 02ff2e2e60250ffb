"""The digest knows a base model by its values, whatever library, dtype or quantization holds them."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import aim_adapters as aim
from aim_adapters.backbones import read_anatomy
from aim_adapters.checkpoint.base_digest import base_digest, differs
from aim_adapters.errors import CheckpointError
from aim_adapters.storage import CONFIG_NAME
from tests.backbones.cases import scramble
from tests.checkpoint.cases import assert_refused, rewrite
from tests.oracle import holders
from tests.oracle.vit import Size, random_weights
from tests.tiny import FRAMES, SIZE, base, run, trained, wrapped

HALVES = (torch.bfloat16, torch.float16)
FORMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "as it is": lambda model: model,
    "float64": lambda model: model.double(),
    **{f"{dtype}": lambda model, dtype=dtype: model.to(dtype) for dtype in HALVES},
    **{
        f"{one}, {other}": lambda model, one=one, other=other: model.to(one).to(other)
        for one in HALVES
        for other in (*HALVES, torch.float32)
        if one != other
    },
}


def digest_of(model: nn.Module) -> str | None:
    anatomy = read_anatomy(model)
    return base_digest(model.get_submodule(anatomy.root), anatomy)


def is_other(model: nn.Module, digest: str | None) -> bool:
    anatomy = read_anatomy(model)
    assert digest is not None
    return differs(model.get_submodule(anatomy.root), anatomy, digest)


def random_base(seed: int) -> nn.Module:
    """Return an image model with norms as training leaves them."""
    model, generator = base(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 0.3 * torch.rand((), generator=generator)
            parameter.copy_(parameter.sign() * torch.rand(parameter.shape, generator=generator) * scale)
    return model


def sibling(model: nn.Module, relative: float, seed: int = 1) -> nn.Module:
    other, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1 + relative * torch.randn(parameter.shape, generator=generator))
    return other


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**32 - 1))
def test_every_form_of_the_same_weights_agrees_and_a_sibling_does_not(seed: int) -> None:
    model = random_base(seed)
    forms = {name: change(copy.deepcopy(model)) for name, change in FORMS.items()}
    digests = {name: digest_of(form) for name, form in forms.items()}
    assert not [(one, other) for one in forms for other in forms if is_other(forms[one], digests[other])]
    assert digests["as it is"] == digests["float64"] == digests["torch.bfloat16"]
    # Finer than the 4e-3 that one step of bfloat16 is, as 104 values are compared.
    assert is_other(sibling(model, 2e-3), digests["as it is"])
    assert is_other(sibling(model, 1e-2).bfloat16(), digests["torch.float16"])


@pytest.mark.parametrize("kind", ["plain", "clip", "dino"])
def test_same_in_every_library(kind: str) -> None:
    size, libraries = {
        "plain": (Size(), (holders.timm, holders.torchvision, holders.hf_vit)),
        "clip": (
            Size(eps=1e-5, quick_gelu=True, pre_norm=True, patch_bias=False),
            (holders.timm, holders.open_clip, holders.hf_clip),
        ),
        "dino": (Size(layer_scale=True), (holders.timm, holders.hf_dinov2)),
    }[kind]
    digests = [digest_of(holder(random_weights(size), size)) for holder in libraries]
    assert len(set(digests)) == 1
    assert digests[0] is not None
    assert all(is_other(holder(random_weights(size, 1), size), digests[0]) for holder in libraries)


PlainNorm = functools.partial(nn.LayerNorm, elementwise_affine=False)


@pytest.mark.parametrize("norm", [nn.RMSNorm, PlainNorm])
def test_norms_without_biases_or_without_weights(norm: Callable[[int], nn.Module]) -> None:
    model = scramble(base(norm_layer=norm))
    assert not is_other(copy.deepcopy(model).bfloat16(), digest_of(model))
    assert is_other(scramble(copy.deepcopy(model)), digest_of(model))


def test_model_without_any_such_tensor_has_none() -> None:
    model = base(norm_layer=PlainNorm)
    model.patch_embed.to("meta")
    assert digest_of(model) is None


def test_wrapping_training_and_moving_leave_it_alone() -> None:
    expected, model = digest_of(base()), trained()
    aim.set_base_dtype(model, torch.bfloat16)
    assert base_digest(model, model.aim.anatomy) == expected
    assert base_digest(model.to("meta"), model.aim.anatomy) is None


# Loading


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wrap", [True, False])
@pytest.mark.parametrize(
    ("other", "guess"),
    [
        (lambda: scramble(base()), "it is another checkpoint of the same shape"),
        (lambda: type(base())(**SIZE), "its norm weights are all 1, .* pretrained=True was forgotten"),
    ],
    ids=["another", "untrained"],
)
def test_other_weights_are_refused_until_the_caller_consents(
    strict: bool, wrap: bool, other: Callable[[], Any], guess: str, saved: Path
) -> None:
    model = aim.wrap_image_model(other(), FRAMES) if wrap else other()
    match = rf"does not hold the weights that the adapters were trained on \(an unnamed model\); {guess}"
    assert_refused(model, saved, rf"{match}.*Nothing was loaded.*allow_other_base=True", strict=strict)
    with pytest.warns(UserWarning, match=match):
        report = aim.load_adapters(model, saved, strict, allow_other_base=True)
    assert not any(report)


def test_consent_covers_the_name(tmp_path: Path) -> None:
    aim.save_adapters(trained("vit_x.in1k"), tmp_path)
    with pytest.warns(UserWarning, match=r"trained on vit_x\.in1k, this model is vit_x\.in21k"):
        aim.load_adapters(base("vit_x.in21k"), tmp_path, allow_other_base=True)


def test_same_weights_in_half_precision_load(saved: Path) -> None:
    for dtype in HALVES:
        assert not any(aim.load_adapters(base().to(dtype), saved))


@pytest.mark.parametrize("change", [lambda config: config.pop("base_digest"), lambda c: c.update(base_digest=None)])
def test_checkpoint_without_it_loads_as_before(change: Callable[[dict[str, Any]], Any], saved: Path) -> None:
    rewrite(saved, config=change)
    assert not any(aim.load_adapters(scramble(base()), saved))


def test_one_of_a_later_version_is_not_compared_and_that_is_said(saved: Path) -> None:
    rewrite(saved, config=lambda config: config.update(base_digest="2:whatever"))
    with pytest.warns(UserWarning, match=r"base_digest in the config is of version 2, .* was not checked"):
        aim.load_adapters(base(), saved)


@pytest.mark.parametrize("digest", ["", "1:", "1:zz", "1:3f80", "3f80", "x" * 10**6, "1:" + "3F80" * 104, "-1:00"])
def test_damaged_one_is_refused(digest: str, saved: Path) -> None:
    rewrite(saved, config=lambda config: config.update(base_digest=digest))
    assert_refused(base(), saved, "base_digest=.* which is damaged")


def test_untrained_base_is_warned_about_when_adapters_are_loaded(tmp_path: Path) -> None:
    image_model = type(base())(**SIZE)
    model = aim.wrap_image_model(copy.deepcopy(image_model), FRAMES)
    with torch.no_grad():
        model.blocks[0].aim.temporal.up_proj.weight.fill_(1)
    aim.save_adapters(model, tmp_path)
    with pytest.warns(UserWarning, match="the image model looks untrained"):
        aim.load_adapters(image_model, tmp_path)
    torch.testing.assert_close(run(image_model.eval()), run(model.eval()))


def test_written_beside_the_fingerprint(saved: Path) -> None:
    config = json.loads((saved / CONFIG_NAME).read_text(encoding="utf-8"))
    assert config["base_digest"] == digest_of(base())
    with pytest.raises(CheckpointError, match="base_digest=5, expected str or null"):
        rewrite(saved, config=lambda config: config.update(base_digest=5))
        aim.load_adapters(wrapped(), saved)
