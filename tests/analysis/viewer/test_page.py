from __future__ import annotations

import base64
import hashlib
import html
import re
from typing import Any

import pytest
import torch

import aim_adapters as aim
from aim_adapters.analysis.viewer import LIMIT, PackedMaps, Variant, build_page
from tests.analysis.test_explanation import scene_of

SCENE: dict[str, Any] = {"notes": [], "rows": [], "target": {"index": 0, "name": "x"}}
FRAMES = torch.zeros(2, 3, 8, 12, dtype=torch.uint8)
NASTY = ["</script><script>alert(1)</script>", "<!--", "{{script}}", "\u2028 & \"quotes\" 'and' <b>", "\ud800", "\0"]


def page(*, title: str = "clip.mp4", maps: tuple[PackedMaps, ...] = (), **scene: Any) -> str:
    variant = Variant("AIM", (("x", 1.0),), maps, ((0, 2),), (0,))
    return build_page(title, FRAMES, [variant], {**SCENE, **scene})


@pytest.mark.parametrize("text", NASTY)
def test_text_stays_text(text: str) -> None:
    title = text.encode(errors="replace").decode()
    built = page(title=title, rows=[{"name": text}])
    assert scene_of(built)["rows"][0]["name"] == text
    assert built.count("<script") == page().count("<script") and "<!--" not in built
    assert html.escape(title) in built


def test_the_page_needs_no_network_and_runs_only_its_own_script() -> None:
    built = page()
    assert not re.search(r"""(?:src|href|url\()=?["'(]?(?:https?:)?//""", built)
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', built)
    assert policy is not None
    assert policy[1].startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        *_, text = re.findall(rf"<{tag}>(.*?)</{tag}>", built, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy[1]
    assert "style=" not in built  # the policy would refuse it
    assert aim.__version__ in built


def test_frames_are_what_was_given() -> None:
    assert scene_of(page())["size"] == [8, 12]
    assert all(uri.startswith("data:image/jpeg;base64,") for uri in scene_of(page())["frames"])


def test_a_page_of_the_largest_model_is_below_ten_megabytes() -> None:
    # ViT-L/14 with 16 frames: maps of 24 blocks and 16 heads, as bytes that no compression makes smaller.
    frames, patches, blocks, heads = 16, 256, 24, 16
    sizes = {"mean": frames * patches, "heads": heads * frames * patches, "grid": patches * frames**2}
    maps = tuple(
        PackedMaps(kind, (), torch.randint(0, 256, (blocks * size,), dtype=torch.uint8).numpy().tobytes())
        for kind, size in sizes.items()
    )
    variants = [Variant(name, (("x", 1.0),), maps, ((0, 2),), (0,)) for name in ("Frozen", "+ s", "+ t", "AIM")]
    pictures = torch.randint(0, 256, (frames, 3, 224, 224), dtype=torch.uint8)  # noise, the largest of pictures
    built = build_page("clip.mp4", pictures, variants, SCENE)
    assert len(built) < LIMIT < 10_000_000
    scene = scene_of(built)
    assert [note.startswith("Left out to keep this file small") for note in scene["notes"]] == [True, True]
    assert [packed for packed in scene["parts"] if packed != "mean"] == ["heads", "grid"]
