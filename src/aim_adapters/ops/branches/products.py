"""What differs between ways to multiply by frozen weights: the protocol that a branch is computed with."""

from __future__ import annotations

from typing import NamedTuple, Protocol, TypeVar

from torch import Tensor

from aim_adapters.ops.bottleneck import MlpLayers, aligned
from aim_adapters.ops.branches.plan import AttentionPlan, MlpPlan
from aim_adapters.ops.branches.tensors import AdapterTensors, AttentionTensors, MlpTensors


class Projected(NamedTuple):
    """What `Products.project` computes.

    Attributes:
        x: Tokens with what the branch in front adds to them ``[M, D]``.
        packed: Queries, keys and values ``[M, 3*H*d]``.
        pre: What an adapter in front of the projection activates ``[M, W]``, or None where there is none.
    """

    x: Tensor
    packed: Tensor
    pre: Tensor | None


class MlpHidden(NamedTuple):
    """What an MLP and the adapter beside it activate; C is what `columns_of` returns.

    Attributes:
        frozen: What the MLP activates ``[M, C]``.
        value: What that gates ``[M, C]``, or None where the MLP is not gated.
        adapter: What the adapter activates ``[M, W]``, or None where there is none.
        joined: All side by side ``[M, C + W]`` or ``[M, 2*C + W]``, of which they are views; None where they lie apart.
    """

    frozen: Tensor
    value: Tensor | None
    adapter: Tensor | None
    joined: Tensor | None

    @classmethod
    def split(cls, joined: Tensor, t: MlpTensors) -> MlpHidden:
        """Return the parts of what lies side by side; the adapter's may be empty."""
        columns, gated = columns_of(t), t.gate_weight is not None
        frozen, value = joined[:, :columns], joined[:, columns : 2 * columns] if gated else None
        adapter = joined[:, (1 + gated) * columns :]
        return cls(frozen, value, adapter if adapter.shape[1] else None, joined)


def columns_of(t: MlpTensors) -> int:
    """Return the columns that the hidden units of an MLP take: as many as they are, but of a gated one `aligned`."""
    units = t.in_weight.shape[0]
    return units if t.gate_weight is None else aligned(units)


class HiddenGradient(NamedTuple):
    """The gradient of what the last layers of an MLP and of the adapter beside it multiply.

    Attributes:
        adapter: That of the adapter's hidden units ``[M, W]``.
        joined: That of the MLP's activations with it behind ``[M, >= C + W]``; of a gated MLP with memory for that of
            the layer that is activated in front ``[M, >= 2*C + W]``. None where it is still to be computed.
    """

    adapter: Tensor
    joined: Tensor | None


ActivatedT = TypeVar("ActivatedT")


class Products(Protocol[ActivatedT]):
    """The products with frozen weights, and what is fused with them: norms and activations.

    M rows are tokens of width D, ``t`` the frozen layers of a branch. Products of adapters alone are none of these.
    """

    def project(
        self,
        x: Tensor,
        y: Tensor | None,
        t: AttentionTensors,
        adapter: AdapterTensors | None,
        branch: AttentionPlan,
    ) -> Projected:
        """Normalize, adapt and project.

        Args:
            x: Tokens ``[M, D]``.
            y: What the branch in front adds to them ``[M, D]``, or None.
            t: Norm and projection.
            adapter: An adapter with an inner skip between the two, or None.
            branch: The branch.
        """
        ...

    def project_backward(self, d_qkv: Tensor, t: AttentionTensors) -> Tensor:
        """Return the gradient of the projected tokens ``[M, D]`` from that of queries, keys and values."""
        ...

    def mlp_layers(self, t: MlpTensors, adapter: AdapterTensors | None) -> MlpLayers:
        """Return the layers of an MLP, and of the adapter beside it where one product gives both."""
        ...

    def expand(
        self,
        x: Tensor,
        y: Tensor | None,
        layers: MlpLayers,
        t: MlpTensors,
        adapter: AdapterTensors | None,
        branch: MlpPlan,
    ) -> tuple[Tensor, Tensor | None, MlpHidden]:
        """Normalize and apply the first layers of MLP and adapter.

        Args:
            x: Tokens ``[M, D]``.
            y: What the branch in front adds to them ``[M, D]``, or None.
            layers: What `mlp_layers` returned.
            t: The frozen layers.
            adapter: The adapter, or None.
            branch: The branch.

        Returns:
            ``x + y``; that normalized, if there is an adapter; what is activated.
        """
        ...

    def activate(
        self, pre: MlpHidden, t: MlpTensors, branch: MlpPlan, factor: Tensor | None, rows_per_clip: int
    ) -> ActivatedT:
        """Activate what `expand` returned, gate and normalize it, for `contract`.

        Args:
            pre: What is activated.
            t: The frozen layers.
            branch: The branch.
            factor: Stochastic depth of each clip, or None.
            rows_per_clip: T*N.
        """
        ...

    def contract(
        self, activated: ActivatedT, layers: MlpLayers, t: MlpTensors, adapter: AdapterTensors | None
    ) -> Tensor:
        """Apply the last layers of MLP and adapter.

        Args:
            activated: What `activate` returned.
            layers: What `mlp_layers` returned.
            t: The frozen layers.
            adapter: The adapter, or None.

        Returns:
            What the branch adds to the tokens ``[M, D]``.
        """
        ...

    def contract_backward(
        self, d_low: Tensor, layers: MlpLayers, t: MlpTensors, adapter: AdapterTensors
    ) -> HiddenGradient:
        """Return the gradient of hidden units from that of the tokens behind, ``[M, D]`` in the compute dtype."""
        ...

    def expand_backward(
        self,
        d_out: Tensor,
        d: HiddenGradient | None,
        pre: MlpHidden,
        layers: MlpLayers,
        t: MlpTensors,
        adapter: AdapterTensors | None,
        branch: MlpPlan,
    ) -> Tensor:
        """Return the gradient of the normalized tokens ``[M, D]``.

        Args:
            d_out: Gradient of the tokens behind the branch ``[M, D]``.
            d: What `contract_backward` returned, that of the adapter's units now in front of its activation; None
                where there is no adapter. May be overwritten.
            pre: What `expand` returned.
            layers: What `mlp_layers` returned.
            t: The frozen layers.
            adapter: The adapter, or None.
            branch: The branch.
        """
        ...

    def kept(self, pre: MlpHidden) -> tuple[Tensor, Tensor | None]:
        """Return what is activated as the tensors that the backward pass keeps."""
        ...

    def restored(self, pre: Tensor, units: Tensor | None, t: MlpTensors) -> MlpHidden:
        """Return what `kept` was given."""
        ...
