"""What other tools may do with a wrapped model, and what is refused: promises 6 to 8 of the design, for any family."""

from __future__ import annotations

import copy
import functools
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_leaves

import aim_adapters as aim
from aim_adapters.backbones import read_anatomy
from aim_adapters.core import Graphs, only_root
from aim_adapters.core.mixins import PatchProduct, TokenEntry
from aim_adapters.core.readers import ImageReader
from aim_adapters.core.root import VideoRoot
from aim_adapters.errors import CheckpointError, InputError, StateError
from tests.backbones.cases import (
    FRAMES,
    WAYS_TO_RUN,
    Case,
    assert_same,
    loss,
    needs_machinery,
    read_root,
    scramble,
    set_checkpointing,
    snapshot,
    wake,
)
from tests.core.graph_cases import FakeGraphs


class ToolPromises:
    """Files, PyTorch's machinery, refusals: for one member of a family."""

    # 6. Save and load

    @pytest.mark.parametrize("holder", ["bare", "compiled", "ddp", "fsdp2", "checkpointed", "ema"])
    def test_saved_adapters_load_bit_exactly(
        self, case: Case, holder: str, tmp_path: Any, request: pytest.FixtureRequest
    ) -> None:
        if holder != "bare":
            needs_machinery(case)
        if holder in ("ddp", "fsdp2"):
            request.getfixturevalue("process_group")
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
        held: nn.Module = model
        if holder == "compiled":
            held = torch.compile(model, backend="eager")  # type: ignore[assignment]
        elif holder == "ddp":
            held = DistributedDataParallel(model)
        elif holder == "fsdp2":
            if not hasattr(torch.cpu.Stream, "record_event"):
                pytest.skip("this version of torch cannot run FSDP2 on a CPU")
            mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
            for module in model.modules():
                if hasattr(module, "aim") and hasattr(module.aim, "temporal"):
                    fully_shard(module, mesh=mesh)
            # the tower, not the whole: fully_shard takes no scalar parameters such as CLIP's logit_scale
            fully_shard(model.get_submodule(read_root(model)), mesh=mesh)
        elif holder == "checkpointed":
            apply_activation_checkpointing(model, check_fn=lambda m: hasattr(m, "aim") and hasattr(m.aim, "temporal"))
        elif holder == "ema":
            held = copy.deepcopy(model)
        aim.save_adapters(held, tmp_path / "out")
        fresh = case.model()
        assert not any(aim.load_adapters(fresh, tmp_path / "out"))
        with torch.no_grad():
            assert torch.equal(case.call(fresh, video), expected)
        # and back into what holds the model
        report = aim.load_adapters(held, tmp_path / "out")
        assert report == aim.LoadReport((), (), ())
        with torch.no_grad():
            torch.testing.assert_close(case.call(model, video), expected, rtol=1e-6, atol=1e-6)

    def test_adapters_know_the_values_of_their_base(self, case: Case, tmp_path: Any) -> None:
        model = wake(aim.wrap_image_model(case.model(), FRAMES))
        aim.save_adapters(model, tmp_path)
        for dtype in (torch.bfloat16, torch.float16):
            assert not any(aim.load_adapters(case.model().to(dtype), tmp_path))
        other = scramble(case.model())
        before = snapshot(other)
        with pytest.raises(CheckpointError, match="does not hold the weights that the adapters were trained on"):
            aim.load_adapters(other, tmp_path)
        assert_same(before, snapshot(other))

    # 7. PyTorch's own machinery

    def test_compiles_into_one_graph_for_every_number_of_clips(self, case: Case) -> None:
        needs_machinery(case)
        model = wake(aim.wrap_image_model(case.model(), FRAMES)).train()
        torch._dynamo.reset()
        counter = CompileCounterWithBackend(case.compiler)
        compiled = torch.compile(case.call, fullgraph=True, backend=counter)
        for clips in (6, 7):  # equal to no other size, which the tracer would take for the same
            video, grads = case.video(clips=clips), []
            # Clips alone: with symbolic heights and widths, tracing how torchvision pads its windows takes minutes.
            torch._dynamo.mark_dynamic(video, 0)
            for run in (case.call, compiled):
                model.zero_grad()
                out = run(model, video)
                loss(out).backward()
                grads.append([out.detach(), *(p.grad.clone() for p in aim.trainable_parameters(model))])
            for eager, compiled_one in zip(*grads, strict=True):
                torch.testing.assert_close(compiled_one, eager, rtol=1e-4, atol=1e-5)
            assert counter.frame_count == 1

    def test_replayed_calls_agree(self, case: Case) -> None:
        eager = wake(aim.wrap_image_model(case.model(), FRAMES)).train()
        replayed = copy.deepcopy(eager)
        _, root, state = only_root(replayed)
        state.graphs = Graphs(root, 8, FakeGraphs())
        for seed in range(3):
            found = []
            for model in (eager, replayed):
                model.zero_grad()
                out = case.call(model, case.video(seed=seed))
                loss(out).backward()
                found.append([out.detach(), *(p.grad for p in aim.trainable_parameters(model))])
            torch.testing.assert_close(*found, rtol=1e-4, atol=1e-5)
        assert [(row.runs, row.calls) for row in state.graphs.rows()] == [("graph", 3)]

    def test_all_ways_to_run_agree(self, case: Case) -> None:
        model, video = wake(aim.wrap_image_model(case.model().double(), FRAMES, drop_path=0.5)), case.video().double()
        model.train()
        runs = []
        for fused, memory in WAYS_TO_RUN:
            aim.set_execution(model, fused=fused, memory=memory)
            model.zero_grad()
            torch.manual_seed(0)  # all of them drop the same branches
            out = case.call(model, video)
            loss(out).backward()
            runs.append([out.detach(), *(p.grad.clone() for p in aim.trainable_parameters(model))])
        for expected, *others in zip(*runs, strict=True):
            for other in others:
                torch.testing.assert_close(other, expected, rtol=1e-8, atol=1e-10)

    def test_hooks_fire_on_every_part_of_a_block_that_the_image_model_calls(self, case: Case) -> None:
        model, video = case.model(), case.video(clips=1)
        anatomy = read_anatomy(model)
        root = model.get_submodule(anatomy.root)
        parts = [
            part
            for path in {anatomy.blocks[0][0], anatomy.blocks[-1][0]}  # Swin: the one with time, and one without
            for part in root.get_submodule(path).modules()
        ]
        called: list[nn.Module] = []

        def run(hooked: list[nn.Module], frames: Tensor) -> list[nn.Module]:
            called.clear()
            handles = [part.register_forward_hook(lambda module, *_: called.append(module)) for part in hooked]
            with torch.no_grad():
                case.call(model, frames)
            for handle in handles:
                handle.remove()
            return list(called)

        own = run(parts, video.flatten(0, 1))
        aim.wrap_image_model(model, FRAMES)
        assert len(own) > 10
        assert [part for part in own if part not in run([part], video)] == []

    def test_autocast_agrees(self, case: Case) -> None:
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
        for dtype in (torch.bfloat16, torch.float16):
            model.train().zero_grad()
            with torch.autocast("cpu", dtype):
                out = case.call(model, video)
            loss(out.float()).backward()
            trained = aim.trainable_parameters(model)
            assert all(p.grad is not None and p.grad.dtype == p.dtype for p in trained), dtype
            assert (out.float() - expected).norm() / expected.norm() < 0.05, dtype

    def test_pure_bfloat16_agrees(self, case: Case) -> None:
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
            out = case.call(model.to(torch.bfloat16), video.to(torch.bfloat16))
        assert out.dtype == torch.bfloat16
        assert (out.float() - expected).norm() / expected.norm() < 0.05

    def test_wrapping_a_bfloat16_model_gives_bfloat16_adapters(self, case: Case) -> None:
        model = aim.wrap_image_model(case.model().to(torch.bfloat16), FRAMES)
        assert {p.dtype for p in aim.trainable_parameters(model)} == {torch.bfloat16}
        loss(case.call(model, case.video().to(torch.bfloat16)).float()).backward()

    def test_channels_last_agrees(self, case: Case) -> None:
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
            model.to(memory_format=torch.channels_last)
            flat = video.flatten(0, 1).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(case.call(model, flat), expected, rtol=1e-5, atol=1e-6)

    def test_exports(self, case: Case) -> None:
        needs_machinery(case)
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        tower = model.get_submodule(read_root(model))
        with torch.no_grad():
            expected = case.output(tower(video))
            program = torch.export.export(tower, (video,), strict=False)
            torch.testing.assert_close(case.output(program.module()(video)), expected, rtol=1e-5, atol=1e-6)

    def test_functional_call_agrees(self, case: Case) -> None:
        model, video = aim.wrap_image_model(case.model(), FRAMES), case.video()
        tower = model.get_submodule(read_root(model))
        other = wake(copy.deepcopy(tower))
        with torch.no_grad():
            expected = case.output(other(video))
            out = torch.func.functional_call(tower, dict(other.named_parameters()), (video,))
            assert torch.equal(case.output(out), expected)
            assert not torch.allclose(case.output(tower(video)), expected)

    def test_checkpointing_keeps_outputs_and_gradients(self, case: Case) -> None:
        if not case.checkpoints:
            pytest.skip("this library checkpoints nothing by itself")
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        grads = []
        for enable in (False, True):
            set_checkpointing(model, enable)
            model.train().zero_grad()
            out = case.call(model, video)
            loss(out).backward()
            grads.append([out.detach(), *(p.grad.clone() for p in aim.trainable_parameters(model))])
        for plain, checkpointed in zip(*grads, strict=True):
            torch.testing.assert_close(checkpointed, plain, rtol=1e-5, atol=1e-6)

    @pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # PyTorch's own words before our error
    @pytest.mark.filterwarnings("ignore:Please specify CheckpointImpl")  # of PyTorch 2.6
    def test_reentrant_checkpointing_without_gradients_is_refused(self, case: Case) -> None:
        needs_machinery(case)
        model = wake(aim.wrap_image_model(case.model(), FRAMES, components=("spatial", "joint"))).train()
        loss(case.call(model, case.video())).backward()
        plain = [p.grad for p in aim.trainable_parameters(model)]
        wrapper = functools.partial(checkpoint_wrapper, checkpoint_impl=CheckpointImpl.REENTRANT)
        apply_activation_checkpointing(model, wrapper, check_fn=lambda m: hasattr(getattr(m, "aim", None), "joint"))
        with pytest.raises(StateError, match=r"gives blocks\.0 no gradients.*use_reentrant=False"):
            case.call(model, case.video())
        model.zero_grad()
        loss(case.call(model, case.video().requires_grad_())).backward()
        torch.testing.assert_close([p.grad for p in aim.trainable_parameters(model)], plain, rtol=1e-5, atol=1e-6)

    def test_copies_are_whole_and_independent(self, case: Case) -> None:
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
        buffer = io.BytesIO()
        torch.save(model, buffer)
        buffer.seek(0)
        copies = {
            "deepcopy": copy.deepcopy(model),
            "pickle": pickle.loads(pickle.dumps(model)),
            "torch.save": torch.load(buffer, weights_only=False),
        }
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        for how, other in copies.items():
            assert type(other) is type(model), how
            assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}, how
            with torch.no_grad():
                assert torch.equal(case.call(other, video), expected), how
            aim.unwrap_image_model(other)
            assert not aim.is_wrapped(other), how

    # 8. What is not supported says so

    def test_wrong_input_is_refused(self, case: Case) -> None:
        model = aim.wrap_image_model(case.model(), FRAMES)
        for video, text in (
            (case.video(frames=FRAMES + 1), f"{FRAMES} frames"),
            (case.video(frames=FRAMES)[:, :, :2], f"{case.channels} channels"),
            (case.video()[0, 0], "must be"),
            (case.video().flatten(0, 1)[1:], "multiple"),
            (case.video().to(torch.uint8), "floating point"),
        ):
            with pytest.raises(InputError, match=text):
                case.call(model, video)

    def test_methods_that_take_images_take_videos_frame_by_frame(self, case: Case) -> None:
        model, video = case.model(), case.video()
        anatomy = read_anatomy(model)
        root = model.get_submodule(anatomy.root)
        names = [name for name in anatomy.image_methods if hasattr(root, name)]
        signatures = [inspect.signature(getattr(root, name)) for name in names]
        wake(aim.wrap_image_model(model, FRAMES))
        assert [inspect.signature(getattr(root, name)) for name in names] == signatures
        for name, signature in zip(names, signatures, strict=True):
            method, first = getattr(root, name), next(iter(signature.parameters))
            by_name = {first: video.transpose(1, 2)}
            with torch.no_grad():
                expected, *others = (
                    tree_leaves(out) for out in (method(video.flatten(0, 1)), method(video), method(**by_name))
                )
            assert {len(leaf) for leaf in expected} <= {2 * FRAMES, 2}  # 2: what the head gives is one a clip
            for out in others:
                assert all(torch.equal(one, other) for one, other in zip(out, expected, strict=True))

    def test_video_given_to_a_part_says_to_call_the_model(self, case: Case) -> None:
        model = aim.wrap_image_model(case.model(), FRAMES)
        root = model.get_submodule(read_root(model))
        for part in root.modules():
            if isinstance(part, (ImageReader, TokenEntry, PatchProduct)):
                with pytest.raises(InputError, match="call the wrapped model itself"):
                    part(case.video())

    def test_methods_that_cut_the_model_are_refused_and_change_nothing(self, case: Case) -> None:
        model = case.model()
        anatomy = read_anatomy(model)
        aim.wrap_image_model(model, FRAMES)
        before = snapshot(model)
        for part in model.modules():
            if isinstance(part, (VideoRoot, ImageReader)):
                for name in anatomy.blocked_methods:
                    if hasattr(part, name):
                        with pytest.raises(StateError, match=rf"{name}\(\) would .* unwrap_image_model"):
                            getattr(part, name)(1)
        assert_same(before, snapshot(model))

    def test_attention_masks_are_refused(self, case: Case) -> None:
        if not case.mask:
            pytest.skip("this member takes no mask")
        model = aim.wrap_image_model(case.model(), FRAMES)
        with pytest.raises(aim.UnsupportedModelError, match="mask"):
            model(case.video(), **case.mask)

    def test_wrapping_what_another_tool_holds_is_refused(self, case: Case, request: pytest.FixtureRequest) -> None:
        needs_machinery(case)
        request.getfixturevalue("process_group")
        mesh = dist.device_mesh.init_device_mesh("cpu", (1,))
        sharded, checkpointed, in_place, parametrized = (case.model() for _ in range(4))
        fully_shard(sharded.get_submodule(read_anatomy(sharded).root), mesh=mesh)
        norm = nn.LayerNorm
        apply_activation_checkpointing(checkpointed, check_fn=lambda m: isinstance(m, norm))
        in_place.compile(backend="eager")
        linear = next(m for m in parametrized.modules() if isinstance(m, nn.Linear))
        torch.nn.utils.parametrizations.weight_norm(linear)
        for model in (
            torch.compile(case.model(), backend="eager"),
            DistributedDataParallel(case.model()),
            sharded,
            checkpointed,
            in_place,
            parametrized,
        ):
            with pytest.raises((StateError, aim.UnsupportedModelError), match="first"):
                aim.wrap_image_model(model, FRAMES)

    def test_unwrapping_what_another_tool_holds_is_refused(self, case: Case, request: pytest.FixtureRequest) -> None:
        needs_machinery(case)
        request.getfixturevalue("process_group")
        model = aim.wrap_image_model(case.model(), FRAMES)
        with pytest.raises(StateError, match="DistributedDataParallel"):
            aim.unwrap_image_model(DistributedDataParallel(model))
        fully_shard(model.get_submodule(read_root(model)), mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(StateError, match="full state dict"):
            aim.unwrap_image_model(model)
