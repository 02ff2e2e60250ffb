"""The adapted block of AIM, Eq. 3-5, once for every family of image transformer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from aim_adapters.anatomy import BlockAnatomy, apply_part, has_hooks, require_called
from aim_adapters.core.decisions import decide
from aim_adapters.core.fusion import Branch, ByModules, FusedBranch, run_fused
from aim_adapters.core.guards import require_recorded
from aim_adapters.core.patching import Patched
from aim_adapters.core.places import read_positions
from aim_adapters.core.records import RootCall
from aim_adapters.core.state import AIMState, BlockState
from aim_adapters.layers import add_temporal_embedding, drop_path, relative_temporal_bias
from aim_adapters.ops.branches import AttentionPlan, AttentionTensors, attend_from_first
from aim_adapters.ops.temporal_attention import temporal_attention, temporal_attention_packed


class ResidualStream:
    """The tokens between the branches of a block; fused branches that follow one another run as one step.

    Args:
        block: The block.
        x: Its tokens ``[B*T, ..., D]``.
    """

    def __init__(self, block: AdaptedBlock, x: Tensor) -> None:
        self._block, self._x = block, x
        self._chain: list[FusedBranch] = []  # not run yet

    def add(self, branch: Branch, modules: Callable[[Tensor], Tensor]) -> None:
        """Add a branch to the tokens.

        Args:
            branch: How it runs; None: there is none.
            modules: Runs it as modules: tokens to tokens.
        """
        if isinstance(branch, FusedBranch):
            self._chain.append(branch.after(self._chain))
        elif branch is not None:
            self._x = self._run(modules, self.tokens())

    def tokens(self) -> Tensor:
        """Return the tokens with all branches added."""
        if self._chain:
            self._x, self._chain = run_fused(self._block, self._x, self._chain), []
        return self._x

    def _run(self, modules: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        if self._block.aim.root_state.execution.memory == "fast" or not torch.is_grad_enabled():
            return modules(x)
        out: Tensor = checkpoint(modules, x, use_reentrant=False)
        return out


class AdaptedBlock(Patched):
    """A frozen transformer block with temporal, spatial and joint adaptation.

    ``x += C(x)``, a convolution over frames, in front of the others or in place of the first;
    ``x += T(attn(norm(x)))`` over frames (Eq. 3), ``x += S(attn(norm(x)))`` over tokens (Eq. 4),
    ``x += mlp(norm(x)) + s * M(norm(x))`` (Eq. 5). Both attentions are the block's own. An adapter reads its branch
    after LayerScale; the joint one reads what the MLP reads.
    """

    aim: BlockState
    aim_spec: ClassVar[BlockAnatomy]

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Run the adapted block, or the image model's own while adapters are disabled.

        Args:
            x: Tokens ``[B*T, ..., D]``, the frames of a clip next to one another.
            *args: The block's own further arguments, passed to its spatial attention.
            **kwargs: The same by name.

        Returns:
            Tokens ``[B*T, ..., D]``; of the last block ``[B*T, 1, D]`` where only the [class] token is read.

        Raises:
            StateError: Re-entrant checkpointing would give its adapters no gradients, or FSDP2 shards a part by itself
                that would not be called.
        """
        aim, state = self.aim, self.aim.root_state
        if not state.enabled:
            out: Tensor = super().forward(x, *args, **kwargs)
            return out
        require_recorded(state, aim, x)
        require_called(aim, f"{aim.key}aim")
        if aim.enters and state.temporal_embedding is not None:
            x = add_temporal_embedding(x, state.temporal_embedding)
        positions = read_positions(self, args, kwargs)
        x, (temporal, spatial, mlp) = decide(self, x, positions=positions)
        stream = ResidualStream(self, x)
        if aim.temporal_conv is not None:
            stream.add(ByModules("a convolution, not one of the image model's layers"), self._convolve)
        stream.add(temporal, self._temporal)  # Eq. 3
        if aim.last and self._narrows(x, spatial):
            stream.add(ByModules("on the [class] token alone"), lambda x: self._class_token(x, spatial))  # Eq. 4
        else:
            stream.add(spatial, lambda x: self._spatial(x, *args, **kwargs))  # Eq. 4
        stream.add(mlp, self._mlp)  # Eq. 5
        return stream.tokens()

    def _convolve(self, x: Tensor) -> Tensor:
        aim, shared = self.aim, self.aim.root_state
        assert aim.temporal_conv is not None
        options: dict[str, Any] = {"num_frames": shared.num_frames, "implementation": shared.execution.convolution}
        return x + self._drop(aim.temporal_conv(x, **options))

    def _temporal(self, x: Tensor) -> Tensor:
        aim = self.aim
        assert aim.temporal is not None
        return x + self._drop(aim.temporal(self._attend_over_frames(x)))  # Eq. 3

    def _spatial(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        attended = self._attend_over_tokens(apply_part(self, self.aim_spec.pre_attention, x), *args, **kwargs)
        out: Tensor = x + (attended if self.aim.spatial is None else self.aim.spatial(attended))  # Eq. 4
        return out

    def _narrows(self, x: Tensor, spatial: Branch) -> bool:
        """Return whether the last block need only compute the [class] token: nothing reads the others."""
        aim = self.aim
        # A checkpointed block runs again in the backward pass, outside of the root's forward: as it ran there.
        if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
            return aim.narrowed
        # Fused, so that its adapter is one of ours, or none; and nothing but what `attend_from_first` computes.
        plain = isinstance(spatial, FusedBranch) and spatial.is_bare()
        same = plain and (
            torch.is_autocast_enabled(x.device.type) or aim.spatial is None or x.dtype == aim.spatial.dtype
        )
        narrows = same and _class_token_only(aim.root_state.call) and not any(map(has_hooks, self.modules()))
        if not torch.compiler.is_compiling():  # compiled, a checkpointed block must change nothing outside of itself
            aim.narrowed = narrows
        return narrows

    def _class_token(self, x: Tensor, spatial: Branch) -> Tensor:
        """Do what `_spatial` does for the first token of each frame, ``[B*T, 1, D]``."""
        assert isinstance(spatial, FusedBranch) and isinstance(spatial.plan, AttentionPlan)
        plan, frozen = spatial.plan, spatial.now(self, x).frozen
        assert isinstance(frozen, AttentionTensors)
        attended = attend_from_first(x, frozen, heads=plan.heads, scale=plan.scale, eps=plan.eps)
        adapter = None if spatial.tensors.trained.adapter is None else self.aim.spatial  # None: folded into the frozen
        return x[:, :1] + (attended if adapter is None else adapter(attended))  # Eq. 4

    def _mlp(self, x: Tensor) -> Tensor:
        aim, anatomy = self.aim, self.aim_spec
        h = apply_part(self, anatomy.pre_mlp, x)  # [B*T, ..., D]
        branch = apply_part(self, anatomy.post_mlp, getattr(self, anatomy.mlp)(h))
        if aim.joint is not None:
            branch = branch + aim.root_state.config.scale * self._drop(aim.joint(h))
        return x + branch  # Eq. 5

    def train(self, mode: bool = True) -> AdaptedBlock:
        """Set the mode of the block and its adapters; what is frozen stays in evaluation mode."""
        super().train(mode)
        for child in self.children():
            if not isinstance(child, AIMState):
                child.eval()
        return self

    def _attend_over_frames(self, x: Tensor) -> Tensor:
        aim, anatomy, shared = self.aim, self.aim_spec, self.aim.root_state
        h = apply_part(self, anatomy.pre_attention, x)
        if aim.temporal_input is not None:
            h = aim.temporal_input(h)
        attention = getattr(self, anatomy.attention)
        require_called(attention, f"{aim.key}{anatomy.attention}")
        options: dict[str, Any] = {
            "num_frames": shared.num_frames,
            "scale": anatomy.softmax_scale(attention),
            "bias": None if aim.temporal_bias is None else relative_temporal_bias(aim.temporal_bias),
            "implementation": shared.execution.attention,
        }
        qkv = None if anatomy.project_packed is None else anatomy.project_packed(attention, h)
        if qkv is None:
            o = temporal_attention(*anatomy.project_qkv(attention, h), **options)  # [B*T, N, H, d]
        else:
            o = temporal_attention_packed(qkv, **options)  # [B*T, N, H, d]
        return apply_part(self, anatomy.post_attention, anatomy.project_out(attention, o, h))

    def _attend_over_tokens(self, h: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        anatomy = self.aim_spec
        attention = getattr(self, anatomy.attention)
        as_family = has_hooks(attention) or any(a is not None for a in (*args, *kwargs.values()))
        if anatomy.fused_spatial and not as_family:
            q, k, v = (x.transpose(1, 2) for x in anatomy.project_qkv(attention, h))  # [B*T, H, N, d]
            o = F.scaled_dot_product_attention(q, k, v, scale=anatomy.softmax_scale(attention))
            out = anatomy.project_out(attention, o.transpose(1, 2), h)
        else:
            out = anatomy.attend(self, h, *args, **kwargs)
        return apply_part(self, anatomy.post_attention, out)

    def _drop(self, branch: Tensor) -> Tensor:
        return drop_path(
            branch, rate=self.aim.drop_path, num_frames=self.aim.root_state.num_frames, training=self.training
        )


def _class_token_only(call: RootCall | None) -> bool:
    return call is not None and call.reads_class_token_only()
