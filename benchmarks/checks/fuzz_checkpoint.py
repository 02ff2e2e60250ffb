"""Does any file make loading adapters crash, or leave a model half-loaded?

``python -m benchmarks.checks.fuzz_checkpoint --seconds 60`` changes valid checkpoints in bytes and in values, and
prints how many were accepted and refused; it stops at the first that breaks a promise and writes it to a file. Every
execution

- reads the file alone: what is accepted, the safetensors library accepts too, with the same tensors;
- loads it into a model, wrapped or not, strict or not: a refusal is a `CheckpointError` that leaves the model alone.

``--guided`` lets atheris (``pip install atheris``) choose by coverage of this package what to change further.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import platform
import random
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

import aim_adapters as aim
from aim_adapters.errors import CheckpointError
from aim_adapters.storage.files import WEIGHTS_NAME, open_weights

FRAMES = 2
# Values in place of others, and fragments between them: the edges of what a header or config may hold.
VALUES: list[Any] = [
    *(None, True, False, "", "F16", "F64", "I64", "\ud800", "x" * 300, "all", "temporal", [], {}, [0], [[]], [0, 0]),
    *(-1, 0, -0.0, 1, 2, 3, 8, 2**31 - 1, 2**31, 2**53, 2**63, 2**64, 10**400, 0.5, 1.5, 1e-6, 1e308, 60000.0),
]
FRAGMENTS = (
    *(b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"-0", b"1e5", b"9" * 30, b"null", b"true", b"NaN", b"\0"),
    *(b"\xff", b" ", b"\\u0061", b"\\ud800", b'"F32"', b'"BF16"', b"[0,0]", b"__metadata__", b"\xef\xbb\xbf"),
)


def image_model() -> VisionTransformer:
    """Return a model small enough to be loaded thousands of times, with the same weights each time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return VisionTransformer(img_size=8, patch_size=8, embed_dim=8, depth=2, num_heads=2, num_classes=3).eval()


def small_file() -> bytes:
    """Return a file with every dtype, an empty tensor and a scalar."""
    state = {
        "a": torch.linspace(-1, 1, 6).view(3, 2),
        "b": torch.zeros(0, 4),
        "c": torch.tensor(0.5, dtype=torch.float16),
        "d": torch.arange(5, dtype=torch.bfloat16),
        "é": torch.ones(2, dtype=torch.float64),
    }
    return _sorted(save(state, metadata={"x": json.dumps({"a": 1}), "é": "\U0001f600"}))


def checkpoint_file() -> bytes:
    """Return the weights of a trained adapter, with the config in their header."""
    model = aim.wrap_image_model(image_model(), FRAMES)
    with torch.no_grad():
        for parameter in aim.trainable_parameters(model):
            parameter.add_(0.1)
    with tempfile.TemporaryDirectory() as directory:
        return _sorted((aim.save_adapters(model, directory) / WEIGHTS_NAME).read_bytes())


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Change a safetensors file: a value of its JSON, bytes of its header (whose length stays right), or any bytes."""
    start = 8 + int.from_bytes(content[:8], "little")
    header, data = content[8:start], content[start:]
    kind = chance.random()
    if kind < 0.5 and start <= len(content):
        value = _parsed(header)
        for _ in range(chance.choice((1, 1, 2))):
            value = edit(value, chance)
        return _pack(json.dumps(value).encode(), data)
    if kind < 0.8:
        return _pack(_mutate_bytes(header, chance), data)
    return _mutate_bytes(content, chance)


def edit(value: Any, chance: random.Random) -> Any:
    """Replace, remove or add one value somewhere inside a JSON value, also in JSON inside its strings."""
    if isinstance(value, str) and value.startswith("{") and chance.random() < 0.95:
        return json.dumps(edit(_parsed(value), chance))
    if not isinstance(value, (dict, list)) or not value or chance.random() < 0.05:
        return chance.choice(VALUES)
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    # Half of all edits go to metadata, where the config is.
    key = "__metadata__" if "__metadata__" in keys and chance.random() < 0.5 else chance.choice(keys)
    changed, action = value.copy(), chance.random()
    if action < 0.1:
        del changed[key]
    elif action < 0.2 and isinstance(changed, dict):
        changed[chance.choice(("x", "__metadata__", "head.bias", "é"))] = chance.choice((value[key], *VALUES))
    elif action < 0.2:
        changed.insert(0, chance.choice(VALUES))
    else:
        changed[key] = edit(value[key], chance)
    return changed


def _parsed(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return {}


def _mutate_bytes(content: bytes, chance: random.Random) -> bytes:
    changed = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at, action = chance.randrange(len(changed) + 1), chance.random()
        if action < 0.3:
            changed[at : at + 1] = bytes([chance.randrange(256)])
        elif action < 0.5:
            changed[at:at] = chance.choice(FRAGMENTS)
        elif action < 0.65:
            del changed[at : at + chance.choice((1, 2, 5, 100))]
        elif action < 0.85:
            digits = [i for i, byte in enumerate(changed) if 48 <= byte < 58]
            if digits:
                changed[chance.choice(digits)] = chance.randrange(48, 58)
        else:
            source = chance.randrange(len(changed) + 1)
            changed[at:at] = changed[source : source + 40]
    return bytes(changed)


def _sorted(content: bytes) -> bytes:
    """Put the header's keys in order: those of the metadata come in another one each time."""
    start = 8 + int.from_bytes(content[:8], "little")
    return _pack(json.dumps(json.loads(content[8:start]), sort_keys=True).encode(), content[start:])


def _pack(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def check_reading(path: Path, content: bytes) -> bool:
    """Read a file alone; return whether it was accepted."""
    path.write_bytes(content)
    try:
        with open_weights(path) as file:
            ours = {key: file.read(key) for key in file.shapes}
    except CheckpointError:
        return False
    try:
        theirs = load(content)
    except (SafetensorError, RuntimeError, ValueError) as error:
        raise AssertionError("read, though safetensors refuses it") from error
    assert ours.keys() == theirs.keys(), "other keys than safetensors reads"
    for key, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[key].dtype, theirs[key].shape), key
        assert tensor.view(-1).view(torch.uint8).equal(theirs[key].reshape(-1).view(torch.uint8)), key
    return True


class Loading:
    """Load files into models; a model that a refused file was tried on is tried on again."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._models: dict[str, tuple[nn.Module, dict[str, Tensor]]] = {}

    def check(self, path: Path, content: bytes) -> bool:
        """Load a file as the weights of a checkpoint; return whether it was accepted."""
        path.write_bytes(content)
        start, strict = self._chance.choice(("unwrapped", "wrapped", "beside")), self._chance.random() < 0.5
        model, before = self._models.pop(start, None) or self._fresh(start)
        name = "other" if start == "beside" else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                warnings.filterwarnings("ignore", category=UserWarning, message="|".join(OUR_WARNINGS))
                aim.load_adapters(model, path.parent, strict, name=name)
        except CheckpointError:
            after = model.state_dict()
            assert aim.is_wrapped(model) == (start != "unwrapped"), "refused, and wrapped or unwrapped"
            assert before.keys() == after.keys(), "refused, and its tensors have other names"
            assert all(torch.equal(tensor, after[key]) for key, tensor in before.items()), "refused, and changed"
            self._models[start] = model, before
            return False
        state = aim.adapter_state_dict(model, name=name)
        assert all(tensor.isfinite().all() for tensor in state.values()), "loaded what is not finite"
        return True

    def _fresh(self, start: str) -> tuple[nn.Module, dict[str, Tensor]]:
        model = image_model()
        if start != "unwrapped":
            aim.wrap_image_model(model, FRAMES)
        return model, {key: tensor.clone() for key, tensor in model.state_dict().items()}


OUR_WARNINGS = (
    "the adapters were (saved with|trained on) ",
    "every up-projection in ",
    "the config in .* has unknown keys",
    "saved with attention=.* cannot run here",
    "the base_digest in the config is of version",
    "the image model looks untrained",
)


def run(check: Callable[[bytes], bool], seeds: list[bytes], chance: random.Random, seconds: float) -> Counter[str]:
    """Check mutants of some files, and mutants of the mutants that were accepted, for a while."""
    counts, corpus, end = Counter[str](), list(seeds), time.monotonic() + seconds
    while time.monotonic() < end:
        content = mutate(chance.choice(corpus if chance.random() < 0.5 else seeds), chance)
        accepted = check(content)
        counts["accepted" if accepted else "refused"] += 1
        if accepted and len(content) < 2 * max(map(len, seeds)):
            corpus = [*corpus[-200:], content]
    return counts


def run_guided(check: Callable[[bytes], bool], seeds: list[bytes], chance: random.Random, seconds: float) -> NoReturn:
    """Check what atheris makes of some files; print the counts and end the process, as atheris never returns."""
    import atheris  # type: ignore[import-not-found]

    counts, end = Counter[str](), time.monotonic() + seconds

    def once(content: bytes) -> None:
        counts["accepted" if check(content) else "refused"] += 1
        if time.monotonic() > end:
            print_counts(counts, seconds)
            sys.stdout.flush()
            os._exit(0)

    def change(content: bytes, most: int, seed: int) -> bytes:
        chance = random.Random(seed)
        return mutate(chance.choice((content, *seeds)), chance)[:most]

    folder = tempfile.mkdtemp()
    for index, seed in enumerate(seeds):
        (Path(folder) / str(index)).write_bytes(seed)
    for name, module in sys.modules.copy().items():
        if name in _GUIDED:
            _instrument(module, atheris.instrument_func)
    options = ["-max_len=65536", "-len_control=0", "-reduce_inputs=0", f"-seed={chance.randrange(2**31)}"]
    atheris.Setup(["fuzz", *options, folder], once, custom_mutator=change)
    atheris.Fuzz()
    raise AssertionError("atheris returned")


# What reads a checkpoint.
_GUIDED = {
    "aim_adapters.checkpoint.format",
    "aim_adapters.checkpoint.loading",
    "aim_adapters.config",
    "aim_adapters.storage.files",
}


def _instrument(owner: Any, instrument: Callable[[Any], Any]) -> None:
    """Let atheris see which lines run, in the functions and methods of a module or class."""
    for name, value in list(vars(owner).items()):
        if inspect.isfunction(value) and not hasattr(value, "__wrapped__"):
            setattr(owner, name, instrument(value))
        elif inspect.isclass(value) and inspect.ismodule(owner) and value.__module__ == owner.__name__:
            _instrument(value, instrument)


def print_counts(counts: Counter[str], seconds: float) -> None:
    """Print what was done, as JSON."""
    versions = {name: metadata.version(name) for name in ("aim-adapters", "torch", "safetensors")}
    versions["python"] = platform.python_version()
    print(json.dumps({"executions": counts.total(), **counts, "seconds": seconds, "versions": versions}))


def main() -> int:
    """Fuzz, print the counts, and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--guided", action="store_true", help="let atheris choose")
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as directory:
        path, loading = Path(directory) / WEIGHTS_NAME, Loading(chance)

        def check(content: bytes) -> bool:
            try:
                read = check_reading(path, content)
                loaded = loading.check(path, content)
                assert read or not loaded, "loaded, though it cannot be read"
            except BaseException:
                Path("crash.safetensors").write_bytes(content)
                print("what broke is in crash.safetensors", file=sys.stderr)
                raise
            return loaded

        seeds = [checkpoint_file(), small_file()]
        if arguments.guided:
            run_guided(check, seeds, chance, arguments.seconds)
        print_counts(run(check, seeds, chance, arguments.seconds), arguments.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
