"""Settings are validated once, normalized, and survive JSON."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aim_adapters.config import (
    ACTIVATION_CHOICES,
    ATTENTION_CHOICES,
    COMPONENTS,
    LAYER_CHOICES,
    LAYOUT_CHOICES,
    MEMORY_CHOICES,
    PRECISION_CHOICES,
    TEMPORAL_CHOICES,
    AIMConfig,
    Execution,
)
from aim_adapters.errors import AIMError, ConfigError

PROPERTY = settings(deadline=None, max_examples=50)


@st.composite
def configs(draw: st.DrawFn) -> AIMConfig:
    tubelet = draw(st.integers(1, 4))
    components = draw(st.lists(st.sampled_from(COMPONENTS), unique=True))
    rates = st.floats(0, 1, exclude_max=True)
    temporal = draw(st.sampled_from(TEMPORAL_CHOICES)) if "temporal" in components else "attention"
    layers = st.sampled_from(LAYER_CHOICES) | st.lists(st.integers(-50, 50), min_size=1).map(tuple)
    return AIMConfig(
        num_frames=tubelet * draw(st.integers(1, 64)),
        bottleneck=draw(st.floats(0, 65535, exclude_min=True)),
        scale=draw(st.floats(allow_nan=False, allow_infinity=False)),
        num_classes=draw(st.none() | st.integers(0, 10_000)),
        components=tuple(components),
        layers=draw(layers),
        temporal_input_adapter="temporal" in components and temporal != "conv" and draw(st.booleans()),
        drop_path=draw(rates),
        head_dropout=draw(rates),
        train_norm=draw(st.booleans()),
        tubelet_size=tubelet,
        input_layout=draw(st.sampled_from(LAYOUT_CHOICES)),
        adapter_activation=draw(st.sampled_from(ACTIVATION_CHOICES)),
        temporal=temporal,
        conv_kernel=3 if temporal == "attention" else draw(st.integers(1, 9)) * 2 + 1,
        conv_layers=None if temporal == "attention" else draw(st.none() | layers),
    )


def test_defaults_are_those_of_the_paper() -> None:
    assert AIMConfig(8).to_dict() == {
        "num_frames": 8,
        "bottleneck": 0.25,
        "scale": 0.5,
        "num_classes": None,
        "components": ["temporal", "spatial", "joint"],
        "layers": "all",
        "temporal_input_adapter": False,
        "drop_path": 0.0,
        "head_dropout": 0.0,
        "train_norm": True,
        "tubelet_size": 1,
        "input_layout": "auto",
        "temporal": "attention",
        "conv_kernel": 3,
        "conv_layers": None,
        "adapter_activation": "gelu",
    }


def test_num_frames_has_no_default() -> None:
    with pytest.raises(TypeError, match="num_frames"):
        AIMConfig()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_frames", 1),
        ("num_frames", 10_000),
        ("bottleneck", 1e-9),
        ("bottleneck", 4),
        ("scale", 0),
        ("scale", -1.5),
        ("num_classes", None),
        ("num_classes", 0),
        ("num_classes", 400),
        ("components", ()),
        ("components", ("joint",)),
        ("layers", (0,)),
        ("layers", (-1, 3)),
        *(("layers", choice) for choice in LAYER_CHOICES),
        ("temporal_input_adapter", True),
        ("drop_path", 0),
        ("drop_path", 0.999),
        ("head_dropout", 0.0),
        ("head_dropout", 0.999),
        ("train_norm", False),
        ("tubelet_size", 2),
        *(("input_layout", choice) for choice in LAYOUT_CHOICES),
        *(("adapter_activation", choice) for choice in ACTIVATION_CHOICES),
        *(("temporal", choice) for choice in TEMPORAL_CHOICES),
    ],
)
def test_edges_of_each_domain_are_taken(name: str, value: object) -> None:
    assert getattr(AIMConfig(**{"num_frames": 2, name: value}), name) == value


@pytest.mark.parametrize(
    ("name", "value", "got", "expected"),
    [
        *((name, 1.5, "1.5 of type float", "an integer") for name in ("num_frames", "num_classes", "tubelet_size")),
        *((name, True, "True of type bool", "an integer") for name in ("num_frames", "num_classes", "tubelet_size")),
        *((name, "8", "'8' of type str", "an integer") for name in ("num_frames", "num_classes", "tubelet_size")),
        ("num_frames", None, "None of type NoneType", "an integer >= 1"),
        ("num_frames", 0, "got 0", "an integer >= 1"),
        ("num_frames", -8, "got -8", "an integer >= 1"),
        ("num_classes", -1, "got -1", "an integer >= 0"),
        ("num_classes", 2**31, "got 2147483648", "at most 2147483647"),
        ("num_frames", 10**30, "got 1000000000000000000000000000000", "at most 2147483647"),
        ("bottleneck", 1e12, "got 1000000000000.0", "a finite number > 0.0 and < 65536.0"),
        ("tubelet_size", 0, "got 0", "an integer >= 1"),
        ("tubelet_size", None, "None of type NoneType", "an integer >= 1"),
        ("tubelet_size", 3, "8 frames in tubelets of 3", "num_frames must be a multiple of tubelet_size"),
        ("bottleneck", 0, "got 0", "a finite number > 0.0"),
        ("bottleneck", -0.25, "got -0.25", "a finite number > 0.0"),
        ("bottleneck", math.nan, "got nan", "a finite number > 0.0"),
        ("bottleneck", math.inf, "got inf", "a finite number > 0.0"),
        ("bottleneck", "0.25", "'0.25' of type str", "a finite number > 0.0"),
        ("bottleneck", True, "True of type bool", "a finite number > 0.0"),
        ("bottleneck", 1 + 0j, "of type complex", "a finite number > 0.0"),
        ("scale", -math.inf, "got -inf", "a finite number"),
        ("scale", 10**400, "got 1000", "a finite number"),
        ("scale", None, "None of type NoneType", "a finite number"),
        ("scale", False, "False of type bool", "a finite number"),
        *((name, 1, "got 1", "a finite number >= 0.0 and < 1.0") for name in ("drop_path", "head_dropout")),
        *((name, -0.1, "got -0.1", "a finite number >= 0.0 and < 1.0") for name in ("drop_path", "head_dropout")),
        *((name, math.nan, "got nan", "a finite number >= 0.0 and < 1.0") for name in ("drop_path", "head_dropout")),
        *((name, "0", "'0' of type str", "a finite number") for name in ("drop_path", "head_dropout")),
        *((name, 1, "got 1", "must be True or False") for name in ("temporal_input_adapter", "train_norm")),
        *((name, None, "got None", "must be True or False") for name in ("temporal_input_adapter", "train_norm")),
        ("components", "temporal", "got 'temporal'", "'temporal', 'spatial', 'joint' in a tuple or list"),
        ("components", None, "got None", "'temporal', 'spatial', 'joint' in a tuple or list"),
        ("components", 3, "got 3", "'temporal', 'spatial', 'joint' in a tuple or list"),
        ("components", ("temporal", "mlp"), "got 'mlp'", "'temporal', 'spatial', 'joint' in a tuple or list"),
        ("components", (["joint"],), "got ['joint']", "'temporal', 'spatial', 'joint' in a tuple or list"),
        ("components", ("joint", "joint"), "('joint', 'joint')", "names one twice"),
        ("layers", "middle", "got 'middle'", "'all', 'bottom_half', 'top_half', 'alternate'"),
        ("layers", (), "got ()", "a non-empty list of block indices"),
        ("layers", 3, "got 3", "a non-empty list of block indices"),
        ("layers", None, "got None", "a non-empty list of block indices"),
        ("layers", (0, 1.0), "got (0, 1.0)", "a non-empty list of block indices"),
        ("layers", (True,), "got (True,)", "a non-empty list of block indices"),
        ("layers", ("0",), "got ('0',)", "a non-empty list of block indices"),
        ("input_layout", "THWC", "got 'THWC'", "'auto', 'BTCHW', 'BCTHW'"),
        ("input_layout", 5, "got 5", "'auto', 'BTCHW', 'BCTHW'"),
        ("adapter_activation", "relu", "got 'relu'", "'gelu', 'none'"),
        ("adapter_activation", None, "got None", "'gelu', 'none'"),
    ],
)
def test_rejections_say_what_was_got_and_what_was_expected(name: str, value: object, got: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        AIMConfig(**{"num_frames": 8, name: value})
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, AIMError)
    for part in (name, got, expected):
        assert part in str(caught.value)


def test_values_become_plain_python() -> None:
    config = AIMConfig(
        num_frames=np.int64(8),  # type: ignore[arg-type]
        bottleneck=Fraction(1, 8),  # type: ignore[arg-type]
        scale=np.float32(0.5),  # type: ignore[arg-type]
        num_classes=np.int32(7),  # type: ignore[arg-type]
        components=["joint", "temporal"],  # type: ignore[arg-type]
        layers=np.array([2, 0]),  # type: ignore[arg-type]
        drop_path=np.float64(0.1),  # type: ignore[arg-type]
        tubelet_size=np.uint8(2),  # type: ignore[arg-type]
    )
    expected: dict[str, Any] = {
        "num_frames": 8, "bottleneck": 0.125, "scale": 0.5, "num_classes": 7, "layers": (2, 0), "drop_path": 0.1,
        "components": ("temporal", "joint"), "tubelet_size": 2,
    }  # fmt: skip
    for name, value in expected.items():
        got = getattr(config, name)
        assert got == value, name
        assert type(got) is type(value), name
    assert all(type(index) is int for index in config.layers)
    json.dumps(config.to_dict())


@given(st.permutations(COMPONENTS), st.integers(0, 3))
@PROPERTY
def test_order_of_components_does_not_matter(order: list[str], count: int) -> None:
    names = order[:count]
    config = AIMConfig(4, components=iter(names))  # type: ignore[arg-type]
    assert config.components == tuple(sorted(names, key=COMPONENTS.index))
    assert hash(config) == hash(AIMConfig(4, components=tuple(reversed(names))))


def test_config_is_frozen() -> None:
    config = AIMConfig(8)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.num_frames = 4  # type: ignore[misc]
    with pytest.raises(ConfigError, match="num_frames"):
        dataclasses.replace(config, num_frames=0)


def test_attention_sees_tubelets() -> None:
    assert AIMConfig(32, tubelet_size=2).attention_frames == 16
    assert AIMConfig(32).attention_frames == 32


@given(st.floats(1e-3, 4), st.integers(1, 4096))
@PROPERTY
def test_adapter_width_is_the_floor_or_an_error(bottleneck: float, dim: int) -> None:
    config = AIMConfig(8, bottleneck=bottleneck)
    if bottleneck * dim < 1:
        with pytest.raises(ConfigError, match=rf"bottleneck={bottleneck}.*width {dim}; use at least"):
            config.adapter_width(dim)
    else:
        assert config.adapter_width(dim) == math.floor(bottleneck * dim)


def test_least_bottleneck_that_the_error_names_is_enough() -> None:
    with pytest.raises(ConfigError, match=r"use at least 0\.0625$"):
        AIMConfig(8, bottleneck=0.05).adapter_width(16)
    assert AIMConfig(8, bottleneck=0.0625).adapter_width(16) == 1


@pytest.mark.parametrize(
    ("layers", "depth", "expected"),
    [
        ("all", 4, (0, 1, 2, 3)),
        ("all", 1, (0,)),
        ("bottom_half", 12, (0, 1, 2, 3, 4, 5)),
        ("top_half", 12, (6, 7, 8, 9, 10, 11)),
        ("alternate", 12, (0, 2, 4, 6, 8, 10)),
        ("bottom_half", 5, (0, 1)),
        ("top_half", 5, (3, 4)),
        ("alternate", 5, (0, 2, 4)),
        ("alternate", 1, (0,)),
        ((3, 0, 1), 4, (0, 1, 3)),
        (range(0, 12, 3), 12, (0, 3, 6, 9)),
        ((-1,), 4, (3,)),
        ((-4, 1), 4, (0, 1)),
    ],
)
def test_adapted_blocks(layers: Any, depth: int, expected: tuple[int, ...]) -> None:
    assert AIMConfig(8, layers=layers).adapted_blocks(depth) == expected


@given(st.integers(2, 40))
@PROPERTY
def test_halves_are_disjoint_and_of_equal_size(depth: int) -> None:
    bottom, top = (AIMConfig(8, layers=name).adapted_blocks(depth) for name in ("bottom_half", "top_half"))
    assert len(bottom) == len(top) == depth // 2
    assert max(bottom) < min(top)
    assert (bottom[0], top[-1]) == (0, depth - 1)


@given(st.integers(1, 20), st.data())
@PROPERTY
def test_negative_indices_count_from_the_end(depth: int, data: st.DataObject) -> None:
    wanted = data.draw(st.sets(st.integers(0, depth - 1), min_size=1))
    written = [index - depth if data.draw(st.booleans()) else index for index in wanted]
    assert AIMConfig(8, layers=tuple(written)).adapted_blocks(depth) == tuple(sorted(wanted))


@pytest.mark.parametrize("index", [4, -5, 100])
def test_index_out_of_range_is_refused(index: int) -> None:
    with pytest.raises(ConfigError, match=rf"names block {index}, but the model has 4 blocks; use .* -4 to 3"):
        AIMConfig(8, layers=(0, index)).adapted_blocks(4)


@pytest.mark.parametrize("layers", [(1, 1), (1, -3)])
def test_block_named_twice_is_refused(layers: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="twice"):
        AIMConfig(8, layers=layers).adapted_blocks(4)


@pytest.mark.parametrize("layers", ["bottom_half", "top_half"])
def test_half_of_one_block_is_refused(layers: str) -> None:
    with pytest.raises(ConfigError, match=f"{layers}.*no block of a model of depth 1"):
        AIMConfig(8, layers=layers).adapted_blocks(1)


@given(configs())
@PROPERTY
def test_json_round_trip(config: AIMConfig) -> None:
    again = AIMConfig.from_json(config.to_json())
    assert again == config
    assert again.to_json() == config.to_json()
    assert AIMConfig.from_dict(config.to_dict()) == config


def test_dict_holds_every_field_in_order() -> None:
    assert list(AIMConfig(8).to_dict()) == [field.name for field in dataclasses.fields(AIMConfig)]


def test_absent_fields_take_their_defaults() -> None:
    assert AIMConfig.from_json('{"num_frames": 4, "layers": [0, 2]}') == AIMConfig(4, layers=(0, 2))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"num_frames": 4, "frames": 4, "depth": 2}',
            r"unknown config fields \['depth', 'frames'\]; expected some of",
        ),
        ('{"scale": 0.5}', r"lacks num_frames; got the fields \['scale'\]"),
        ('{"num_frames": 0}', "num_frames must be an integer >= 1, got 0"),
        ('{"num_frames": 4, "scale": NaN}', "scale must be a finite number, got nan"),
        ("[4]", "must be a JSON object, got list"),
        ("null", "must be a JSON object, got NoneType"),
        ("{", "config is not JSON"),
        ("", "config is not JSON"),
        pytest.param('{"num_frames": ' + "1" * 5000 + "}", "config is not JSON", id="long integer"),
        pytest.param("[" * 200_000, "config is not JSON", id="deep nesting"),
    ],
)
def test_what_is_not_a_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AIMConfig.from_json(text)


@pytest.mark.parametrize("attention", ["auto", "triton", "flash", None])
def test_attention_that_earlier_versions_wrote_is_left_out(attention: Any) -> None:
    fields = {**AIMConfig(4, scale=1.5).to_dict(), "attention": attention}
    assert AIMConfig.from_dict(fields) == AIMConfig(4, scale=1.5)
    assert AIMConfig.from_json(json.dumps(fields)) == AIMConfig(4, scale=1.5)
    assert "attention" in fields  # the caller's stays as it is
    with pytest.raises(TypeError, match="attention"):
        AIMConfig(4, attention="auto")  # type: ignore[call-arg]


def test_execution_is_chosen_for_each_block_by_default() -> None:
    assert dataclasses.asdict(Execution()) == {
        "attention": "auto", "fused": "auto", "memory": "fast", "frozen_precision": "auto",
    }  # fmt: skip
    with pytest.raises(dataclasses.FrozenInstanceError):
        Execution().memory = "low"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("attention", choice) for choice in ATTENTION_CHOICES),
        *(("fused", choice) for choice in ("auto", True, False)),
        *(("memory", choice) for choice in MEMORY_CHOICES),
        *(("frozen_precision", choice) for choice in PRECISION_CHOICES),
    ],
)
def test_every_way_to_run_is_taken(name: str, value: object) -> None:
    assert getattr(Execution(**{name: value}), name) == value  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("attention", "flash", "must be one of 'auto', 'triton', 'sdpa', 'eager', got 'flash'"),
        ("attention", None, "must be one of 'auto', 'triton', 'sdpa', 'eager', got None"),
        ("attention", ["auto"], "must be one of 'auto', 'triton', 'sdpa', 'eager', got ['auto']"),
        ("fused", "modules", "must be 'auto', True or False, got 'modules'"),
        ("fused", 1, "must be 'auto', True or False, got 1"),
        ("fused", None, "must be 'auto', True or False, got None"),
        ("memory", "tiny", "must be one of 'fast', 'balanced', 'low', got 'tiny'"),
        ("memory", ["low"], "must be one of 'fast', 'balanced', 'low', got ['low']"),
        ("frozen_precision", "int8", "must be one of 'auto', 'fp8', got 'int8'"),
        ("frozen_precision", None, "must be one of 'auto', 'fp8', got None"),
    ],
)
def test_other_ways_to_run_are_refused(name: str, value: object, expected: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"{name} {expected}")):
        Execution(**{name: value})  # type: ignore[arg-type]
