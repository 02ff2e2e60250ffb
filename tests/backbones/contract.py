"""The promises of the library, as tests that every family of image transformers runs.

A test file of a family defines a fixture ``case`` over its members and sub-classes :class:`Contract`.
"""

from __future__ import annotations

from tests.backbones.contract_convolution import ConvolutionPromises
from tests.backbones.contract_model import ModelPromises
from tests.backbones.contract_tools import ToolPromises


class Contract(ModelPromises, ToolPromises, ConvolutionPromises):
    """Every promise of the design, for one member of a family."""
