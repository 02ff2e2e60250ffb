"""What other tools have done to a wrapped model since it was wrapped: parts swapped, frozen, or trained beside ours."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from aim_adapters.core.foreign import canonical_path
from aim_adapters.core.guards import can_train
from aim_adapters.core.lookup import WrappedModel
from aim_adapters.core.mixins import ClipHead, PatchProduct
from aim_adapters.core.patching import Patched, foreign_forward
from aim_adapters.core.state import RootState, container_of, declared_tensors, own_parameters, states
from aim_adapters.errors import StateError, warn


def other_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that train though they are not ours: thawed ones of the image model, and the caller's own.

    Args:
        model: Any module.

    Returns:
        The parameters by name.
    """
    ours = own_parameters(model)
    return {name: p for name, p in model.named_parameters() if p.requires_grad and id(p) not in ours}


def require_parts(root: nn.Module, state: RootState) -> None:
    """Refuse a model in which another tool has swapped or replaced a module that runs what is ours.

    Args:
        root: A wrapped root.
        state: Its container.

    Raises:
        StateError: Adapters, or what belongs to them, would not run.
    """
    modules: dict[str, nn.Module] = {}
    for path, module in root.named_modules(remove_duplicate=False):
        modules.setdefault(canonical_path(path), module)  # the outermost: what is around ours may be anybody's
    keys = {path: f"blocks.{index}." for index, (path, _) in enumerate(state.anatomy.blocks)}
    for patch in state.layout.patches:
        if patch.mixin is PatchProduct or _runs(modules.get(patch.path), patch.mixin, keys.get(patch.path)):
            continue  # a patch embedding computes the same without us
        if patch.mixin is ClipHead:
            raise StateError(
                f"{patch.path!r} was replaced after wrapping: the new layer would classify single frames and would not "
                "be saved; unwrap the model and wrap it with num_classes=K"
            )
        raise StateError(
            f"{patch.path or 'the model'} was swapped or replaced after wrapping, so that the adapters there do not "
            "run; build the model anew, let the other tool change it, and wrap it then"
        )


def check_training(root: nn.Module, state: RootState) -> None:
    """Warn of what would not train and should, and of what would train and should not; once for each finding.

    Args:
        root: A wrapped root.
        state: Its container.

    Raises:
        StateError: A part of an adapter is checkpointed in the re-entrant way.
    """
    for name, module in root.named_modules():
        own = foreign_forward(module)
        # A forward that wraps the one that was there, as accelerate's does, says so.
        if own is not None and isinstance(module, Patched) and not hasattr(own, "__wrapped__"):
            warn_once(
                state,
                f"{name or 'the model'} was given a forward of its own; its adapters run only if that calls the one it "
                "had before",
            )
    for container in states(root):
        for name, module in container.named_modules():
            if getattr(getattr(module, "checkpoint_impl", None), "name", None) == "REENTRANT":
                raise StateError(
                    f"{container.key}{name} is checkpointed in the re-entrant way, in which it may get no gradients; "
                    "checkpoint blocks or the whole model, with use_reentrant=False"
                )
    declared = declared_tensors(root)
    fixed = [key for key, tensor in declared.items() if isinstance(tensor, nn.Parameter) and not can_train(tensor)]
    if fixed:
        warn_once(
            state,
            f"parameters of the adapters are quantized and cannot train: {listed(fixed)}; quantize the image model "
            "before it is wrapped, and leave out what lies under the name 'aim' afterwards",
        )
    others = other_parameters(root)
    note_thawed(state, others)
    if not others:
        return
    if any(tensor.requires_grad for tensor in declared.values()):
        warn_once(
            state,
            f"parameters of the image model require a gradient: {listed(others)}; save_adapters refuses a model in "
            "which they train, and adapter_param_groups leaves them out unless others=True; freeze them with "
            "requires_grad_(False), or save the whole state_dict",
        )
    else:
        warn_once(
            state,
            f"all adapters are frozen, and {listed(others)} train in their place: another tool, such as peft, chose "
            "what trains; set requires_grad_(True) on the parameters under the name 'aim'",
        )


def require_saveable(model: nn.Module, wrapped: WrappedModel) -> None:
    """Refuse a model that its adapters alone would not reproduce; warn of layers around it that are not saved.

    Args:
        model: What the caller holds.
        wrapped: Result of `only_root` for it.

    Raises:
        StateError: A part was swapped or replaced, or parameters of the image model train or have been trained.
    """
    root, state = wrapped.root, wrapped.state
    require_parts(root, state)
    thawed = other_parameters(root)
    note_thawed(state, thawed)
    trained = {
        name: parameter
        for name, parameter in root.named_parameters()
        if _version(parameter) > state.thawed.get(canonical_path(name), _version(parameter))
    }
    if thawed or trained:
        raise StateError(
            f"parameters of the image model {'were trained' if trained else 'require a gradient'}: "
            f"{listed({**thawed, **trained})}; the adapters alone would give another model; save the whole state_dict, "
            "or freeze them and load the image model's weights again"
        )
    own = {id(parameter) for parameter in root.parameters()}
    beside = [name for name, parameter in other_parameters(model).items() if id(parameter) not in own]
    if beside:
        warn_once(
            state, f"parameters beside the wrapped model train, and are not saved with its adapters: {listed(beside)}"
        )


def note_thawed(state: RootState, thawed: dict[str, nn.Parameter]) -> None:
    """Remember parameters of the image model that require a gradient, and how often they have been changed so far.

    Args:
        state: The container of the root.
        thawed: The parameters by name.
    """
    for name, parameter in thawed.items():
        state.thawed.setdefault(canonical_path(name), _version(parameter))


def listed(names: Iterable[str], most: int = 3) -> str:
    """Return names as a text, without what other tools put into them: the first few, and how many more there are."""
    all_names = [canonical_path(name) for name in names]
    return ", ".join(all_names[:most]) + (f" and {len(all_names) - most} more" if len(all_names) > most else "")


def _runs(module: nn.Module | None, mixin: type[Patched], key: str | None) -> bool:
    """Return whether a module is, or holds, one of ours of a kind; of blocks, that with the adapters of its place."""
    for each in () if module is None else module.modules():
        if isinstance(each, mixin):
            container = container_of(each)
            return key is None or (container is not None and container.key == key)
    return False


def _version(parameter: nn.Parameter) -> int:
    return 0 if parameter.is_inference() else parameter._version


def warn_once(state: RootState, message: str) -> None:
    """Warn of something about a wrapped model that was not said of it before.

    Args:
        state: The container of the root.
        message: Text of the warning.
    """
    if message not in state.warned:
        state.warned.add(message)
        warn(message)
