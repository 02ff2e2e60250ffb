"""Descriptors of the image transformers that can be adapted, one file per family, and the registry that finds them.

A file named after its library and family, such as ``timm_vit``, defines a ``BACKBONE`` and is found automatically.
Other packages add families with `register_backbone` or the entry point group ``aim_adapters.backbones``.
"""

from aim_adapters.backbones.descriptor import Backbone, BaseRequest
from aim_adapters.backbones.naming import build_classifier, build_failures, list_models
from aim_adapters.backbones.registry import (
    BaseFacts,
    base_facts,
    base_labels,
    build_base,
    list_backbones,
    read_anatomy,
    register_backbone,
)

__all__ = [
    "Backbone",
    "BaseFacts",
    "BaseRequest",
    "base_facts",
    "base_labels",
    "build_base",
    "build_classifier",
    "build_failures",
    "list_backbones",
    "list_models",
    "read_anatomy",
    "register_backbone",
]
