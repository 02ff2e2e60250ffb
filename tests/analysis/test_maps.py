from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.anatomy import apply_part
from aim_adapters.core import only_root
from aim_adapters.errors import ConfigError, InputError, StateError, UnsupportedModelError
from tests.backbones import test_swin
from tests.backbones.cases import FRAMES, Case, assert_same, snapshot, wake
from tests.tiny import base, trained, video, wrapped

NAMES = ("push", "pull", "lift", "drop", "turn")


def windows_of(block: nn.Module, h: Tensor) -> Tensor:
    """Return which tokens of a frame a token's output depends on, found by changing one after another: ``[N, N]``."""
    anatomy = block.aim_spec
    rows, columns = h.shape[1:3]
    before = anatomy.attend(block, h)
    depends = torch.zeros(rows * columns, rows * columns, dtype=torch.bool)
    for token in range(rows * columns):
        changed = h.clone()
        changed.view(1, rows * columns, -1)[0, token] += 1
        depends[:, token] = (anatomy.attend(block, changed) != before).any(-1).flatten()
    return depends


@pytest.mark.parametrize("case", test_swin.CASES, ids=lambda case: case.name)
def test_windows_are_put_back_in_their_places(case: Case) -> None:
    model = aim.wrap_image_model(case.model(), FRAMES)
    maps = aim.attention_maps(model, case.video(clips=1))
    root = only_root(model).root
    with torch.no_grad():
        for index in (0, 1):  # of the second one windows are shifted
            block: Any = root.get_submodule(only_root(model).state.anatomy.blocks[index][0])
            rows, columns = maps.grids[index]
            width = only_root(model).state.anatomy.block_widths[index]
            depends = windows_of(block, torch.randn(1, rows, columns, width).double().float())
            found = torch.stack(
                [maps.spatial(index, query=(row, column))[0, 0] for row in range(rows) for column in range(columns)]
            )
            assert torch.equal(found.flatten(1) > 1e-20, depends)
            torch.testing.assert_close(maps.spatial(index, query="mean")[0, 0], found.mean(0))


@pytest.mark.parametrize("head", [0, 1])
def test_weights_are_those_that_the_values_are_averaged_by(head: int) -> None:
    model, clip = wrapped(), video(clips=1)
    seen: list[Tensor] = []
    handle = model.blocks[1].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model(clip)
    handle.remove()
    maps, block = aim.attention_maps(model, clip), model.blocks[1]
    with torch.no_grad():  # adapters are fresh: the temporal branch adds nothing
        q, k, _ = block.aim_spec.project_qkv(block.attn, apply_part(block, "norm1", seen[0]))
        weights = (q[:, :, head] * block.attn.scale @ k[:, :, head].mT).softmax(-1)  # [T, N, N]
        torch.testing.assert_close(maps.spatial(1, head=head)[0].flatten(1), weights[:, 0, 1:])
        torch.testing.assert_close(maps.spatial(1, head=head, query=(1, 0))[0].flatten(1), weights[:, 3, 1:])
        over_time = (q[:, 3, head] * block.attn.scale @ k[:, 3, head].T).softmax(-1)  # [T, T]
        torch.testing.assert_close(maps.temporal(1, head=head, patch=(1, 0))[0], over_time)
        torch.testing.assert_close(maps.temporal_grid(1, head=head)[0, 1, 0], over_time)


def test_rollout_is_the_product_of_all_blocks() -> None:
    model, clip = trained(), video(clips=1)
    maps = aim.attention_maps(model, clip, blocks=[-1])
    whole = aim.attention_maps(model, clip)
    rows = torch.eye(5).expand(FRAMES, 5, 5)
    for block in range(3):
        means = whole._spatial[block].mean(2)[:, 0]  # [T, N, N]
        rows = (means + torch.eye(5)) / 2 @ rows
    torch.testing.assert_close(maps.rollout()[0].flatten(1), rows[:, 0, 1:])
    torch.testing.assert_close(maps.rollout((0, 1))[0].flatten(1), rows[:, 2, 1:])


def test_relevance_is_what_the_class_depends_on() -> None:
    """Checked by differences: the logit's slope along one weight of the last block's attention."""
    model, clip = trained(labels=NAMES), video(clips=2)
    before = snapshot(model)
    maps = aim.attention_maps(model, clip, target="lift")
    assert_same(before, snapshot(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(maps.relevance(), aim.attention_maps(model, clip, target=2).relevance())
    each = aim.attention_maps(model, clip, target=torch.tensor([2, 4])).relevance()
    assert torch.equal(each[0], maps.relevance()[0]) and not torch.equal(each[1], maps.relevance()[1])
    slopes = slope_of_last_block(model, clip, 2) * aim.attention_maps(model, clip)._spatial[2][:, 0, :, 0]
    by_last = slopes.clamp(min=0).mean(1).unflatten(0, (2, FRAMES))[..., 1:]  # [B, T, patches], of the last block
    reached = maps.relevance().flatten(2)
    assert (reached >= by_last - 1e-6).all()  # blocks below add to it


def slope_of_last_block(model: nn.Module, clip: Tensor, target: int) -> Tensor:
    """Return the derivative of a logit by the weights of the [class] token's attention in the last block."""
    model, seen = copy.deepcopy(model).double(), []

    def attend(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> Tensor:
        seen.append((q * q.shape[-1] ** -0.5 @ k.mT).softmax(-1).requires_grad_())
        return seen[-1] @ v

    aim.set_execution(model, fused=False)
    aim.set_attention(model, "eager")  # so that what is called here is spatial attention alone
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        logits = model(clip.double())
    (slope,) = torch.autograd.grad(logits[:, target].sum(), seen[2:])
    return slope[:, :, 0].float()  # [F, H, N]


def test_some_adapters_run() -> None:
    model, clip = trained(), video()
    kept = model.state_dict()
    plain = aim.attention_maps(model, clip, components=())
    only = aim.attention_maps(model, clip, components=["spatial"])
    everything = aim.attention_maps(model, clip, components=("joint", "temporal", "spatial"))
    assert everything.components == ("temporal", "spatial", "joint") and plain.components == ()
    assert everything.temporal_blocks == (0, 1, 2) and plain.temporal_blocks == only.temporal_blocks == ()
    torch.testing.assert_close(everything.logits, model(clip).detach())
    # Without adapters in the blocks a frame is seen as the image model sees it.
    image = aim.wrap_image_model(base(), FRAMES)
    assert torch.equal(plain.spatial(), aim.attention_maps(image, clip).spatial())
    assert not torch.equal(only.spatial(), plain.spatial())
    assert list(kept) == list(model.state_dict())  # in their places
    with pytest.raises(StateError, match="does not attend over time; these do: none"):
        plain.temporal()


def test_a_convolution_runs_with_the_temporal_component_and_has_no_maps_over_time() -> None:
    model, clip = wake(aim.wrap_image_model(base(), FRAMES, temporal="conv", conv_layers=[0])), video()
    whole = aim.attention_maps(model, clip, target=1)
    torch.testing.assert_close(whole.logits, model(clip).detach())
    image = aim.wrap_image_model(base(), FRAMES)
    plain, without = (aim.attention_maps(each, clip, components=()) for each in (image, model))
    assert torch.equal(plain.spatial(), without.spatial())
    assert not torch.equal(aim.attention_maps(model, clip, components=("temporal",)).spatial(), plain.spatial())
    assert whole.temporal_blocks == () and whole.relevance().any()
    with pytest.raises(StateError, match=r"these do: none of those kept; .* a convolution \(temporal='conv'\)"):
        whole.temporal()


def test_blocks_that_are_not_adapted_have_maps_too() -> None:
    model = wake(aim.wrap_image_model(base(), FRAMES, layers="top_half"))
    before = snapshot(model)
    maps = aim.attention_maps(model, video(), target=0)
    assert_same(before, snapshot(model))
    torch.testing.assert_close(maps.logits, model(video()).detach())
    assert maps.blocks == (0, 1, 2) and 0 not in maps.temporal_blocks
    assert maps.relevance().min() >= 0


def test_tubelets_have_one_map_each() -> None:
    model = wake(aim.wrap_image_model(base(), FRAMES, tubelet_size=2))
    maps = aim.attention_maps(model, video())
    assert maps.num_frames == 2 and maps.spatial().shape == (2, 2, 2, 2) and maps.temporal().shape == (2, 2, 2)


def test_what_is_compiled_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model, clip = trained(), video()
    graphs: list[Any] = []
    compiled = torch.compile(model, backend=lambda graph, _: graphs.append(graph) or graph.forward, fullgraph=True)
    with torch.no_grad():
        expected = compiled(clip)
        maps = aim.attention_maps(compiled, clip)
        assert torch.equal(compiled(clip), expected) and len(graphs) == 1
    torch.testing.assert_close(maps.logits, expected)


def test_modes_and_contexts_around_it() -> None:
    model, clip = trained().train(), video()
    model.blocks[0].aim.spatial.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    with torch.inference_mode():
        maps = aim.attention_maps(model, clip + 0, target=1)
    assert modes == {name: module.training for name, module in model.named_modules()}
    aim.set_execution(model, memory="low")
    assert torch.equal(aim.attention_maps(model, clip, target=1).relevance(), maps.relevance())
    with torch.autocast("cpu", torch.bfloat16):
        low = aim.attention_maps(model, clip)
    assert low.spatial().dtype == torch.float32
    torch.testing.assert_close(low.spatial(), maps.spatial(), rtol=0.05, atol=0.02)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"blocks": [3]}, "blocks must be a list of indices from 0 to 2 .* got 3"),
        ({"blocks": "all"}, "blocks must be a list"),
        ({"blocks": [True]}, "blocks must be a list of indices from 0 to 2"),
        ({"components": ["time"]}, "components must be some of those that the model has.*got 'time'"),
        ({"components": "temporal"}, "components must be some of"),
        ({"target": 5}, "index of one of 5 classes"),
        ({"target": -1}, "index of one of 5 classes"),
        ({"target": "jump"}, "one of the model's classes, 'push'.*got 'jump'"),
        ({"target": [0, 1, 2]}, "one for each of 2 clips, got 3"),
        ({"target": 1.5}, "target must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], words: str) -> None:
    model = trained(labels=NAMES)
    before = snapshot(model)
    with pytest.raises(ConfigError, match=words):
        aim.attention_maps(model, video(), **arguments)
    assert_same(before, snapshot(model))


def test_questions_without_an_answer_are_refused() -> None:
    maps = aim.attention_maps(trained(layers=[2]), video(), blocks=[0, -1])
    for call, words in {
        lambda: maps.spatial(
            1
        ): r"block 1 was not kept: blocks are 0, 2; call attention_maps\(model, video, blocks=\[1\]\)",
        lambda: maps.spatial(7): "block must be one of 0 to 2",
        lambda: maps.spatial(head=2): "head must be one of 0 to 1 of block 2",
        lambda: maps.spatial(query="cls"): r"query must be 'class', 'mean', 'auto' or a patch .* got 'cls'",
        lambda: maps.spatial(query=(2, 0)): r"a patch \(row, column\) below \(2, 2\), got \(2, 0\)",
        lambda: maps.rollout(query=(0, -1)): "below",
        lambda: maps.temporal(patch=(0, 0, 1)): "patch must be 'class' or a patch",
    }.items():
        with pytest.raises(ConfigError, match=words):
            call()
    with pytest.raises(StateError, match="block 0 does not attend over time; these do: 2"):
        maps.temporal(0)
    with pytest.raises(StateError, match="without a class"):
        maps.relevance()
    swin = aim.attention_maps(aim.wrap_image_model(test_swin.CASES[0].model(), FRAMES), test_swin.CASES[0].video())
    with pytest.raises(ConfigError, match=r"query must be 'mean', 'auto' or a patch.*no \[class\] token"):
        swin.spatial(query="class")


def test_models_that_have_no_maps_are_refused() -> None:
    with pytest.raises(StateError):
        aim.attention_maps(base(), video())
    model = wrapped()
    with pytest.raises(InputError, match="transform_for"):
        aim.attention_maps(model, [[1.0]])  # type: ignore[arg-type]
    with aim.disable_adapters(model), pytest.raises(StateError, match=r"components=\(\)"):
        aim.attention_maps(model, video())
    features = aim.wrap_image_model(base(num_classes=0), FRAMES)
    assert aim.attention_maps(features, video()).logits.shape == (2, 32)
    with pytest.raises(UnsupportedModelError, match="has no classes"):
        aim.attention_maps(features, video(), target=0)
