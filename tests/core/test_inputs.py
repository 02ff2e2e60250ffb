"""The first batch is looked at once, by nobody but an eager call; what PyTorch says of a batch is explained."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as hf
from open_clip.transformer import VisionTransformer as OpenClip
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import aim_adapters as aim
from aim_adapters.errors import InputError, StateError
from tests.core.test_readers import HF
from tests.tiny import FRAMES, base, video, wrapped

FAR = "far outside of what normalized pixels can be"
CPU = r"torch.autocast\('cpu', dtype=torch.{}\)"


def bytes_() -> Tensor:
    return video().abs() * 100


def shallow() -> nn.Module:
    return aim.wrap_image_model(base(depth=1), FRAMES).eval()


# The first batch


def test_first_batch_is_looked_at_once_and_the_warning_points_here() -> None:
    model = wrapped("vit.tag")
    with pytest.warns(UserWarning, match=r"mean \(0.5, 0.25, 0.125\) and std .*said once") as caught:
        model(bytes_())
    assert [warning.filename for warning in caught] == [__file__]
    model(bytes_())
    copy.deepcopy(model)(bytes_())
    with pytest.warns(UserWarning, match=FAR):
        wrapped().forward_features(bytes_())


def test_a_batch_that_is_right_is_the_only_one_looked_at() -> None:
    model = wrapped()
    model(video())
    model(bytes_())


def test_frames_first_is_noticed_in_flat_frames_and_where_the_shape_leaves_it_open() -> None:
    clips = torch.randn(FRAMES, 1, 3, 16, 16) + 0.1 * video(clips=FRAMES)
    wrapped()(clips)
    for given, fix in (
        (clips.transpose(0, 1), r"pass video.transpose\(0, 1\)"),
        (clips.transpose(0, 1).flatten(0, 1), r"pass video.unflatten\(0, \(4, 4\)\).transpose\(0, 1\)"),
    ):
        with pytest.warns(UserWarning, match=fix):
            wrapped()(given)
    wrapped()(clips.transpose(1, 2))


def compiled(model: nn.Module, clips: Tensor) -> Any:
    return torch.compile(model, fullgraph=True, backend="eager")(clips)


def exported(model: nn.Module, clips: Tensor) -> Any:
    return torch.export.export(model, (clips,), strict=False)


def traced(model: nn.Module, clips: Tensor) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.simplefilter("ignore", FutureWarning)
        return torch.jit.trace(model, (clips,), check_trace=False)


def mapped(model: nn.Module, clips: Tensor) -> Any:
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.func.vmap(model)(clips[None])


def faked(model: nn.Module, clips: Tensor) -> Any:
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return model(mode.from_tensor(clips))


def on_meta(model: nn.Module, clips: Tensor) -> Any:
    return copy.deepcopy(model).to("meta")(clips.to("meta"))


def counted(model: nn.Module, clips: Tensor) -> Any:
    with FlopCounterMode(display=False):
        return model(clips)


@pytest.mark.parametrize("way", [compiled, exported, traced, mapped, faked, on_meta, counted])
def test_rehearsals_are_not_looked_at(way: Callable[[nn.Module, Tensor], Any]) -> None:
    torch._dynamo.reset()
    model = shallow()
    aim.set_attention(model, "eager")
    way(model, bytes_())
    with pytest.warns(UserWarning, match=FAR):  # the first real call is
        model(bytes_())


def test_a_compiled_model_is_not_compiled_again_for_a_call_that_looked() -> None:
    torch._dynamo.reset()
    model = shallow()
    compiled_model = torch.compile(model, backend="eager")
    compiled_model(video())
    model(video())
    with torch._dynamo.config.patch(error_on_recompile=True):
        compiled_model(video())


# What PyTorch says of a batch


def timm_model() -> nn.Module:
    return wrapped().eval()


def hf_model() -> nn.Module:
    return aim.wrap_image_model(hf.ViTForImageClassification(hf.ViTConfig(**HF)), FRAMES).eval()


@pytest.mark.parametrize("fused", ["auto", False])
@pytest.mark.parametrize("build", [timm_model, hf_model])
@pytest.mark.parametrize("held", [torch.float16, torch.bfloat16])
def test_weights_of_two_dtypes_ask_for_autocast(build: Callable[[], nn.Module], held: torch.dtype, fused: Any) -> None:
    model, clips = build(), video()
    aim.set_base_dtype(model, held)
    aim.set_execution(model, fused=fused)
    for given in (clips, clips.to(held)):
        with pytest.raises(StateError, match=CPU.format(str(held)[6:])) as caught:
            model(given)
        assert isinstance(caught.value.__cause__, RuntimeError)
        with torch.autocast("cpu", held):
            model(given)
    other = torch.bfloat16 if held == torch.float16 else torch.float16
    with torch.autocast("cpu", other), pytest.raises(StateError, match=CPU.format(str(held)[6:])):
        model(clips)


@pytest.mark.parametrize("fused", ["auto", False])
@pytest.mark.parametrize(
    ("dtype", "advice"),
    [
        (torch.float16, r"pass video.to\(torch.float32\), or run the model under " + CPU.format("float16")),
        (torch.bfloat16, r"pass video.to\(torch.float32\), or run the model under " + CPU.format("bfloat16")),
        (torch.float64, r"pass video.to\(torch.float32\)$"),
    ],
)
def test_a_video_of_another_dtype_says_what_to_pass(dtype: torch.dtype, advice: str, fused: Any) -> None:
    model, clips = timm_model(), video().to(dtype)
    aim.set_execution(model, fused=fused)
    for call in (model, model.forward_features):
        with pytest.raises(InputError, match=advice):
            call(clips)
    with torch.autocast("cpu", torch.bfloat16):
        if dtype == torch.float64:
            with pytest.raises(InputError, match=advice):
                model(clips)
        else:
            model(clips)
    with pytest.raises(InputError, match=r"pass video.to\(torch.bfloat16\)$"):
        timm_model().bfloat16()(video())


def test_other_troubles_of_a_batch_are_named() -> None:
    with pytest.raises(InputError, match=r"on meta and the model on cpu; pass video.to\('cpu'\)"):
        timm_model()(video().to("meta"))
    by_modules = hf_model()
    aim.set_execution(by_modules, fused=False)
    with pytest.raises(InputError, match=r"the batch is empty, got \[0, 4, 3, 16, 16\]; leave it out"):
        by_modules(video()[:0])
    with pytest.raises(InputError, match=r"whole clips of 4, got 7 frames; leave out or repeat some"):
        timm_model().forward_features(video().flatten(0, 1)[1:])
    tower = aim.wrap_image_model(OpenClip(16, 8, 32, 2, 2, 4.0, output_dim=12), FRAMES)
    with pytest.raises(InputError, match="frames are 24 x 32 pixels, and the model reads 16 x 16; resize or crop"):
        tower(torch.randn(2, FRAMES, 3, 24, 32))
    with pytest.raises(InputError, match=r"nothing was given: .* by its name"):
        by_modules(None)


def test_errors_that_are_not_about_the_batch_pass_as_they_are() -> None:
    model = timm_model()
    with model.blocks[1].register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("dtype of mine"))):
        with pytest.raises(RuntimeError, match="dtype of mine") as caught:
            model(video())
    assert type(caught.value) is RuntimeError
