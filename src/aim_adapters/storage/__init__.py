"""Files on disk and on the Hub, read safely whoever wrote them."""

from aim_adapters.storage.downloads import LIBRARY_NAME, download
from aim_adapters.storage.failures import explained, explained_push, quotes_token
from aim_adapters.storage.files import (
    CARD_NAME,
    CONFIG_NAME,
    WEIGHTS_NAME,
    WeightsFile,
    open_weights,
    parse_json,
    read_bytes,
    read_json,
)
from aim_adapters.storage.pickles import StoredTensor
from aim_adapters.storage.sources import (
    COUNTED_NAME,
    HubOptions,
    file_mode,
    locate,
    require_inner_path,
    require_repo_id,
    require_token,
)
from aim_adapters.storage.torch_files import read_torch_file
from aim_adapters.storage.writing import explained_writing, replaced_when_whole, write_checkpoint, write_weights

__all__ = [
    "CARD_NAME",
    "CONFIG_NAME",
    "COUNTED_NAME",
    "LIBRARY_NAME",
    "WEIGHTS_NAME",
    "HubOptions",
    "StoredTensor",
    "WeightsFile",
    "download",
    "explained",
    "explained_push",
    "explained_writing",
    "file_mode",
    "locate",
    "open_weights",
    "parse_json",
    "quotes_token",
    "read_bytes",
    "read_json",
    "read_torch_file",
    "replaced_when_whole",
    "require_inner_path",
    "require_repo_id",
    "require_token",
    "write_checkpoint",
    "write_weights",
]
