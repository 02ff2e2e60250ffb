"""Descriptors of the image transformers that can be adapted, one file a family, and the search for the right one.

A file named after its library and family, such as ``timm_vit``, holds a ``BACKBONE`` and is found without being named
anywhere. Other packages add families with `register_backbone` or the entry point group ``aim_adapters.backbones``.
"""

from aim_adapters.backbones.descriptor import Backbone, BaseRequest
from aim_adapters.backbones.registry import (
    BaseFacts,
    base_facts,
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
    "build_base",
    "list_backbones",
    "read_anatomy",
    "register_backbone",
]
