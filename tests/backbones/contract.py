"""The promises of the library, as tests that every family of image transformers runs.

A test file of a family defines a fixture ``case`` over its members and sub-classes :class:`Contract`.
"""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import aim_adapters as aim
from aim_adapters.anatomy import apply_part
from aim_adapters.backbones import read_anatomy
from aim_adapters.errors import ConfigError, InputError, StateError

FRAMES = 4
WAYS_TO_RUN: tuple[tuple[Any, Any], ...] = (
    (False, "fast"), (False, "low"), ("auto", "fast"), ("auto", "balanced"), ("auto", "low"),
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A member of a family: how to make a tiny one and how to call it on images."""

    name: str
    build: Callable[[], nn.Module]
    image_size: int = 16
    call: Callable[[nn.Module, Tensor], Tensor] = lambda model, x: model(x)
    dropout: Callable[[], nn.Module] | None = None  # the same with every dropout and drop path switched on
    mask: dict[str, Any] = field(default_factory=dict)  # arguments that must be refused
    output: Callable[[Any], Tensor] = lambda out: out  # what `call` reads of the tower's output
    exact: bool = True  # False: the whole model projects outside its tower, behind the average over frames
    channels: int = 3
    tokens: tuple[int, ...] = (5,)  # shape of the tokens that a block reads
    plain_attention: Callable[[Any, Tensor], Tensor] | None = None  # the family's attention without spatial position
    checkpoints: bool = True  # the library can checkpoint activations itself
    machinery: bool = False  # runs what takes seconds: compiling, exporting, sharding; some members of each family do

    def model(self) -> nn.Module:
        """Return a member with random weights everywhere, so that nothing is hidden behind a zero or a one.

        Always the same weights.
        """
        torch.manual_seed(0)
        return scramble(self.build()).eval()

    def video(self, clips: int = 2, frames: int = FRAMES, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(clips, frames, self.channels, self.image_size, self.image_size, generator=generator)

    def averaged(self, model: nn.Module, video: Tensor) -> Tensor:
        """Return the image model's output, averaged over frames."""
        with torch.no_grad():
            return self.call(model, video.flatten(0, 1)).unflatten(0, video.shape[:2]).mean(1)


def scramble(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def wake(model: nn.Module) -> nn.Module:
    """Give every trainable parameter a random value, as if trained."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in aim.trainable_parameters(model):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator).to(parameter))
    return model


def train_steps(case: Case, model: nn.Module, steps: int = 2) -> None:
    model.train()
    optimizer = torch.optim.SGD(aim.trainable_parameters(model), lr=0.1)
    for step in range(steps):
        optimizer.zero_grad()
        loss(case.call(model, case.video(seed=step))).backward()
        optimizer.step()
    model.eval()


def loss(out: Tensor) -> Tensor:
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).view_as(out)
    return (out * weights).sum() + out.square().mean()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Return everything about a model that a failed or undone wrap must leave alone."""
    return {
        "types": {name: type(module) for name, module in model.named_modules()},
        "modes": {name: module.training for name, module in model.named_modules()},
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "flags": {name: parameter.requires_grad for name, parameter in model.named_parameters()},
        "ids": {name: id(parameter) for name, parameter in model.named_parameters()},
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for key in ("types", "modes", "attributes", "flags", "ids"):
        assert before[key] == after[key], key
    assert before["state"].keys() == after["state"].keys()
    assert all(torch.equal(value, after["state"][name]) for name, value in before["state"].items())


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


class Contract:
    """Every promise of the design, for one member of a family."""

    # 1. Identity

    @pytest.mark.parametrize("frames", [1, 3, 4])
    def test_starts_as_the_image_model_averaged_over_frames(self, case: Case, frames: int) -> None:
        model = case.model()
        for video in (case.video(frames=frames), case.video(clips=1, frames=frames)):
            expected = case.averaged(model, video)
            layout = "BTCHW" if frames == case.channels else "auto"
            aim.wrap_image_model(model, frames, temporal_input_adapter=True, input_layout=layout)
            with torch.no_grad():
                torch.testing.assert_close(case.call(model, video), expected, rtol=1e-5, atol=3e-6)
                torch.testing.assert_close(case.call(model, video.flatten(0, 1)), expected, rtol=1e-5, atol=3e-6)
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

    @pytest.mark.parametrize("call", ["add_module", "train"])  # while parts go in; when all are in
    def test_wrap_that_fails_half_way_changes_nothing(self, case: Case, call: str) -> None:
        model = case.model()
        anatomy = read_anatomy(model)
        last = model.get_submodule(anatomy.root).get_submodule(anatomy.blocks[-1][0])

        def fail(*args: Any, **kwargs: Any) -> None:
            raise MemoryError("half-way")

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

    # 6. Save and load

    @pytest.mark.parametrize("holder", ["bare", "compiled", "ddp", "fsdp2", "checkpointed", "ema"])
    def test_saved_adapters_load_bit_exactly(self, case: Case, holder: str, tmp_path: Any, process_group: None) -> None:
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
        held: nn.Module = model
        if holder in ("compiled", "ddp", "fsdp2"):
            needs_machinery(case)
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

    # 7. PyTorch's own machinery

    def test_compiles_into_one_graph_for_every_number_of_clips(self, case: Case) -> None:
        needs_machinery(case)
        model = wake(aim.wrap_image_model(case.model(), FRAMES)).train()
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        compiled = torch.compile(case.call, fullgraph=True, dynamic=True, backend=counter)
        compiles = []
        for clips in (6, 7):  # equal to no other size, which the tracer would take for the same
            video, grads = case.video(clips=clips), []
            for run in (case.call, compiled):
                model.zero_grad()
                out = run(model, video)
                loss(out).backward()
                grads.append([out.detach(), *(p.grad.clone() for p in aim.trainable_parameters(model))])
            for eager, compiled_one in zip(*grads, strict=True):
                torch.testing.assert_close(compiled_one, eager, rtol=1e-4, atol=1e-5)
            compiles.append(counter.frame_count)
        assert compiles[0] == compiles[1] > 0

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

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_autocast_agrees(self, case: Case, dtype: torch.dtype) -> None:
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
        with torch.autocast("cpu", dtype):
            out = case.call(model.train(), video)
        loss(out.float()).backward()
        assert all(p.grad is not None and p.grad.dtype == p.dtype for p in aim.trainable_parameters(model))
        assert (out.float() - expected).norm() / expected.norm() < 0.05

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

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "torch.save"])
    def test_copies_are_whole_and_independent(self, case: Case, how: str) -> None:
        model, video = wake(aim.wrap_image_model(case.model(), FRAMES)), case.video()
        with torch.no_grad():
            expected = case.call(model, video)
        if how == "deepcopy":
            other = copy.deepcopy(model)
        elif how == "pickle":
            other = pickle.loads(pickle.dumps(model))
        else:
            buffer = io.BytesIO()
            torch.save(model, buffer)
            buffer.seek(0)
            other = torch.load(buffer, weights_only=False)
        assert type(other) is type(model)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in model.parameters()}
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
            assert torch.equal(case.call(other, video), expected)
        aim.unwrap_image_model(other)
        assert not aim.is_wrapped(other)

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

    def test_attention_masks_are_refused(self, case: Case) -> None:
        if not case.mask:
            pytest.skip("this member takes no mask")
        model = aim.wrap_image_model(case.model(), FRAMES)
        with pytest.raises(aim.UnsupportedModelError, match="mask"):
            model(case.video(), **case.mask)

    def test_wrapping_what_another_tool_holds_is_refused(self, case: Case, process_group: None) -> None:
        needs_machinery(case)
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

    def test_unwrapping_what_another_tool_holds_is_refused(self, case: Case, process_group: None) -> None:
        needs_machinery(case)
        model = aim.wrap_image_model(case.model(), FRAMES)
        with pytest.raises(StateError, match="DistributedDataParallel"):
            aim.unwrap_image_model(DistributedDataParallel(model))
        fully_shard(model.get_submodule(read_root(model)), mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
        with pytest.raises(StateError, match="full state dict"):
            aim.unwrap_image_model(model)


def needs_machinery(case: Case) -> None:
    """Skip a test that takes seconds unless this member of its family runs it."""
    if not case.machinery:
        pytest.skip("another member of the family runs this")


def set_checkpointing(model: nn.Module, enable: bool) -> None:
    """Switch on the library's own activation checkpointing."""
    tower = model.get_submodule(read_root(model))
    if hasattr(model, "gradient_checkpointing_enable"):  # transformers; renamed in its later versions
        if enable and hasattr(model, "activation_checkpointing_enable"):
            model.activation_checkpointing_enable()
        elif enable:
            model.gradient_checkpointing_enable({"use_reentrant": False})
    else:
        (tower if hasattr(tower, "set_grad_checkpointing") else model).set_grad_checkpointing(enable)


def read_root(model: nn.Module) -> str:
    """Return the path of the wrapped root."""
    return next(name for name, module in model.named_modules() if hasattr(getattr(module, "aim", None), "record"))
