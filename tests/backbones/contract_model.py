"""What the video model computes, trains and gives back: promises 1 to 5 of the design, for any family."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import aim_adapters as aim
from aim_adapters.anatomy import apply_part
from aim_adapters.backbones import read_anatomy
from aim_adapters.errors import ConfigError, StateError
from tests.backbones.cases import FRAMES, Case, assert_same, loss, scramble, snapshot, train_steps, wake


def assert_near(found: Tensor, expected: Tensor, **where: int) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=3e-6, msg=lambda message: f"{where}: {message}")


class ModelPromises:
    """Identity, an untouched base, what trains, gradients, undo: for one member of a family."""

    # 1. Identity

    def test_starts_as_the_image_model_averaged_over_frames(self, case: Case) -> None:
        model = case.model()
        for frames in (1, 3, 4):
            videos = [case.video(frames=frames), case.video(clips=1, frames=frames)]
            expected = [case.averaged(model, video) for video in videos]
            layout = "BTCHW" if frames == case.channels else "auto"
            temporal: Any = "both" if frames == 3 else "attention"  # and a convolution over frames
            aim.wrap_image_model(model, frames, temporal_input_adapter=True, input_layout=layout, temporal=temporal)
            for video, right in zip(videos, expected, strict=True):
                for given in (video, video.flatten(0, 1)):
                    with torch.no_grad():
                        assert_near(case.call(model, given), right, frames=frames, clips=len(video))
            aim.unwrap_image_model(model)

    def test_reads_all_layouts_alike(self, case: Case) -> None:
        model = wake(aim.wrap_image_model(case.model(), FRAMES))
        video = case.video()
        with torch.no_grad():
            expected = case.call(model, video)
            assert torch.equal(case.call(model, video.transpose(1, 2).contiguous()), expected)
            assert torch.equal(case.call(model, video.flatten(0, 1)), expected)

    def test_tubelets_average_frame_pairs(self, case: Case) -> None:
        model, video = case.model(), case.video()
        expected = case.averaged(model, video.unflatten(1, (FRAMES // 2, 2)).mean(2))
        aim.wrap_image_model(model, FRAMES, tubelet_size=2)
        with torch.no_grad():
            torch.testing.assert_close(case.call(model, video), expected, rtol=1e-5, atol=1e-6)

    def test_attention_is_read_as_the_family_computes_it(self, case: Case) -> None:
        model = case.model()
        anatomy = read_anatomy(model)
        root = model.get_submodule(anatomy.root).double()
        for (path, block_anatomy), width in zip(anatomy.blocks, anatomy.block_widths, strict=True):
            block = root.get_submodule(path)
            h = torch.randn(2, *case.tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            h = apply_part(block, block_anatomy.pre_attention, h)
            attention = getattr(block, block_anatomy.attention)
            q, k, v = (x.transpose(1, 2) for x in block_anatomy.project_qkv(attention, h))
            scale = block_anatomy.softmax_scale(attention)
            o = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
            ours = block_anatomy.project_out(attention, o.transpose(1, 2), h)
            theirs = (case.plain_attention or block_anatomy.attend)(block, h)
            torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

    def test_packed_projection_is_the_separate_one(self, case: Case) -> None:
        model = case.model()
        anatomy = read_anatomy(model)
        root = model.get_submodule(anatomy.root)
        for (path, block_anatomy), width in zip(anatomy.blocks, anatomy.block_widths, strict=True):
            if block_anatomy.project_packed is None:
                continue
            attention = getattr(root.get_submodule(path), block_anatomy.attention)
            h = torch.randn(2, *case.tokens, width, generator=torch.Generator().manual_seed(3))
            separate = block_anatomy.project_qkv(attention, h)  # [B*T, N, H, d]
            packed = block_anatomy.project_packed(attention, h)  # [B*T, N, 3, H, d]
            together = len({x.untyped_storage().data_ptr() for x in separate}) == 1
            assert (packed is not None) == together  # what is written as one is handed on as one
            if packed is not None:
                assert packed.is_contiguous()
                assert packed.shape[3] == block_anatomy.heads(attention)
                assert all(torch.equal(one, other) for one, other in zip(packed.unbind(2), separate, strict=True))

    def test_attention_maps_are_of_what_it_computes(self, case: Case) -> None:
        model = wake(aim.wrap_image_model(case.model(), FRAMES))
        before, video = snapshot(model), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
            features = case.call(model, video.flip(1))
        maps = aim.attention_maps(model, video)
        assert_same(before, snapshot(model))
        if case.exact:  # else what was called goes on behind the tower
            assert_near(maps.logits, expected)
        first, last = maps.grids[0], maps.grids[-1]
        for block in maps.blocks:
            found = maps.spatial(block)
            assert found.shape == (2, FRAMES, *maps.grids[block]) and found.min() >= 0
            assert found.flatten(2).sum(2).max() < 1 + 1e-5
        for block in maps.temporal_blocks:
            rows = maps.temporal_grid(block).sum(-1)
            torch.testing.assert_close(rows, torch.ones(2, *maps.grids[block], FRAMES))
        assert maps.rollout().shape == (2, FRAMES, *first) and len(maps.heads) == len(maps.grids)
        assert maps.rollout(query=(last[0] - 1, 0)).flatten(2).sum(2).max() < 1 + 1e-5
        assert torch.equal(case.call(model, video.flip(1)), features)  # it runs as it did

    # 2. The base is untouched

    def test_base_state_survives_wrapping_and_training(self, case: Case) -> None:
        model = case.model()
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        train_steps(case, aim.wrap_image_model(model, FRAMES))
        after = model.state_dict()
        assert [name for name in after if ".aim." not in f".{name}"] == list(before)
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_base_checkpoint_loads_strictly_and_leaves_adapters_alone(self, case: Case) -> None:
        base = {name: tensor + 1 for name, tensor in case.model().state_dict().items()}
        for assign in (False, True):
            model = wake(aim.wrap_image_model(case.model(), FRAMES))
            ours = {name: tensor.clone() for name, tensor in aim.adapter_state_dict(model).items()}
            trainable = [id(p) for p in aim.trainable_parameters(model)]
            model.load_state_dict(base, strict=True, assign=assign)
            assert all(torch.equal(model.state_dict()[name], value) for name, value in base.items())
            assert all(torch.equal(tensor, ours[name]) for name, tensor in aim.adapter_state_dict(model).items())
            assert [id(p) for p in aim.trainable_parameters(model)] == trainable

    def test_whole_state_dict_round_trips_and_a_partial_one_is_refused(self, case: Case) -> None:
        model = wake(aim.wrap_image_model(case.model(), FRAMES))
        state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        other = aim.wrap_image_model(case.model(), FRAMES)
        other.load_state_dict(state)
        with torch.no_grad():
            assert torch.equal(case.call(other, case.video()), case.call(model, case.video()))
        del state[next(name for name in state if "temporal.up_proj" in name)]
        with pytest.raises(RuntimeError, match=r"Missing key.*temporal\.up_proj"):
            other.load_state_dict(state)

    # 3. Only what is declared trains

    def test_exactly_the_declared_parameters_require_gradients(self, case: Case) -> None:
        model = aim.wrap_image_model(case.model(), FRAMES)
        expected = {name for name, _ in model.named_parameters() if ".aim." in f".{name}"}
        assert {name for name, p in model.named_parameters() if p.requires_grad} == expected
        assert {id(p) for p in aim.trainable_parameters(model)} == {
            id(p) for p in model.parameters() if p.requires_grad
        }
        assert len(expected) == len(aim.adapter_state_dict(model))

    def test_frozen_dropout_is_inactive_in_training(self, case: Case) -> None:
        if case.dropout is None:
            pytest.skip("this member has no dropout to switch on")
        model = scramble(case.dropout())
        video = case.video()
        with torch.no_grad():
            trained = case.call(model.train(), video.flatten(0, 1))
            plain = case.call(model.eval(), video.flatten(0, 1))
            assert trained.shape != plain.shape or not torch.allclose(trained, plain, rtol=1e-3)
            wake(aim.wrap_image_model(model, FRAMES))
            expected = case.call(model.eval(), video)
            torch.testing.assert_close(case.call(model.train(), video), expected, rtol=1e-5, atol=1e-6)
        assert model.training

    def test_block_whose_class_is_swapped_is_refused(self, case: Case) -> None:
        model = aim.wrap_image_model(case.model(), FRAMES)
        path, block = next((n, m) for n, m in model.named_modules() if hasattr(getattr(m, "aim", None), "drop_path"))
        block.__class__ = type("Theirs", (block.aim_base,), {})
        with pytest.raises(StateError, match=r"was swapped or replaced after wrapping") as error:
            model.train()
        assert path.endswith(str(error.value).partition(" ")[0])

    def test_methods_that_replace_reset_or_freeze_are_refused(self, case: Case) -> None:
        model = case.model()
        anatomy = read_anatomy(model)
        named = ("reset_classifier", "init_weights", "lock", "lock_image_tower")
        for module in {model, model.get_submodule(anatomy.root)}:
            own = {name: getattr(module, name) for name in (*named, *anatomy.blocked_methods) if hasattr(module, name)}
            aim.wrap_image_model(model, FRAMES)
            for name in own:
                with pytest.raises(StateError, match=rf"^{name}\(\) would replace, cut, reset or freeze"):
                    getattr(module, name)()
            assert len(aim.trainable_parameters(model)) == len(aim.adapter_state_dict(model))
            aim.unwrap_image_model(model)
            assert own == {name: getattr(module, name) for name in own}

    # 4. Gradients

    def test_every_declared_parameter_gets_a_gradient_within_two_steps(self, case: Case) -> None:
        model = aim.wrap_image_model(case.model(), FRAMES, temporal_input_adapter=True)
        reached: set[str] = set()
        optimizer = torch.optim.SGD(aim.trainable_parameters(model), lr=0.1)
        names = {id(p): name for name, p in model.named_parameters()}
        for step in range(3):
            optimizer.zero_grad()
            loss(case.call(model.train(), case.video(seed=step))).backward()
            reached |= {names[id(p)] for p in aim.trainable_parameters(model) if p.grad is not None and p.grad.any()}
            optimizer.step()
        assert {names[id(p)] for p in aim.trainable_parameters(model)} == reached

    def test_clips_of_a_batch_never_see_one_another(self, case: Case) -> None:
        model = wake(aim.wrap_image_model(case.model().double(), FRAMES))
        video = case.video().double().requires_grad_()
        case.call(model, video)[0].sum().backward()
        assert video.grad is not None
        assert video.grad[0].any()
        assert not video.grad[1].any()

    def test_frames_of_a_clip_see_one_another_in_order(self, case: Case) -> None:
        model = wake(aim.wrap_image_model(case.model().double(), FRAMES))
        video = case.video().double()
        with torch.no_grad():
            forwards, backwards = case.call(model, video), case.call(model, video.flip(1))
        assert not torch.allclose(forwards, backwards, rtol=1e-4)

    def test_below_the_first_adapted_block_nothing_records_a_graph(self, case: Case) -> None:
        model = case.model()
        anatomy = read_anatomy(model)
        first = max(i for i, (_, block) in enumerate(anatomy.blocks) if block.temporal)
        aim.wrap_image_model(model, FRAMES, layers=[first])
        recorded: list[bool] = []
        root = model.get_submodule(anatomy.root)
        for path, _ in anatomy.blocks:
            root.get_submodule(path).register_forward_hook(lambda m, a, out: recorded.append(out.requires_grad))
        out = case.call(model.train(), case.video())
        assert recorded == [False] * first + [True] * (len(anatomy.blocks) - first)
        assert out.requires_grad

    # 5. Undo

    def test_unwrap_gives_back_exactly_the_image_model(self, case: Case) -> None:
        model, video = case.model(), case.video()
        first = next(model.parameters())
        first.requires_grad_(False)
        before, expected = snapshot(model), case.averaged(model, video)
        train_steps(case, aim.wrap_image_model(model, FRAMES))
        assert aim.is_wrapped(model)
        assert aim.unwrap_image_model(model) is model
        assert not aim.is_wrapped(model)
        assert_same(before, snapshot(model))
        assert torch.equal(case.averaged(model, video), expected)

    def test_refused_wrap_changes_nothing(self, case: Case) -> None:
        model = case.model()
        before = snapshot(model)
        with pytest.raises(ConfigError, match="bottleneck"):
            aim.wrap_image_model(model, FRAMES, bottleneck=1e-6)
        assert_same(before, snapshot(model))

    def test_wrap_that_fails_half_way_changes_nothing(self, case: Case) -> None:
        model = case.model()
        anatomy = read_anatomy(model)
        last = model.get_submodule(anatomy.root).get_submodule(anatomy.blocks[-1][0])

        def fail(*args: Any, **kwargs: Any) -> None:
            raise MemoryError("half-way")

        for call in ("add_module", "train"):  # while parts go in; when all are in
            setattr(last, call, fail)
            before = snapshot(model)
            with pytest.raises(MemoryError, match="half-way"):
                aim.wrap_image_model(model, FRAMES)
            assert_same(before, snapshot(model))
            delattr(last, call)
        aim.wrap_image_model(model, FRAMES)

    def test_second_wrap_is_an_error(self, case: Case) -> None:
        model = wake(aim.wrap_image_model(case.model(), FRAMES))
        before = snapshot(model)
        with pytest.raises(StateError, match="wrapped already"):
            aim.wrap_image_model(model, FRAMES)
        assert_same(before, snapshot(model))

    def test_disabled_adapters_are_the_image_model_exactly_also_after_training(self, case: Case) -> None:
        # Frozen, as torch 2.6 picks its attention kernel by that flag, even where no gradient is asked for.
        model, video = case.model().requires_grad_(False), case.video()
        expected = case.averaged(model, video)
        train_steps(case, aim.wrap_image_model(model, FRAMES))
        with torch.no_grad():
            adapted = case.call(model, video)
            with aim.disable_adapters(model):
                out = case.call(model, video)
            assert torch.equal(case.call(model, video), adapted)
        if case.exact:
            assert torch.equal(out, expected)
        torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)
        assert not torch.allclose(adapted, expected)
