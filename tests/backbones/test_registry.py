"""What the descriptors of a library know is known without that library."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
sys.modules.update(dict.fromkeys(("open_clip", "timm", "torchvision", "transformers")))  # importing one fails
from aim_adapters.backbones import base_facts
print(*base_facts("timm", "vit.in1k", {}))
print(*base_facts("open_clip", "ViT-B-16:openai", {"part": "model"}))
print(*base_facts("torchvision", "vit_b_16:IMAGENET1K_V1", {}))
print(*base_facts("transformers", "google/siglip", {"architecture": "SiglipModel"}))
"""


def test_base_models_are_described_where_their_library_is_missing() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "timm/vit.in1k model",
        "None model.encode_image",
        "None model",
        "google/siglip model.get_image_features",
    ]
