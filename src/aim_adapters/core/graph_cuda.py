"""Recordings as CUDA graphs."""

from __future__ import annotations

import contextlib
import gc
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import ClassVar

import torch
from torch import Tensor

from aim_adapters.core.graph_capture import Pool, Taped

_WARM_UPS = 3  # as PyTorch has it: libraries choose kernels and take work space in the first passes
_END_IN_2_6 = "_cuda_endAllocateCurrentStreamToPool"


class CudaGraphs:
    """Recordings as CUDA graphs."""

    def __init__(self) -> None:
        self._streams: dict[torch.device, _Stream] = {}

    def why_not(self, device: torch.device) -> str | None:
        """Return why nothing can be recorded on a device, or None."""
        if device.type != "cuda":
            return f"the model is on a {device.type}, which has no CUDA graphs"
        if torch.cuda.is_current_stream_capturing():
            return "it is being captured in a larger CUDA graph"
        return None

    def new_pool(self, device: torch.device) -> Pool:
        """Return new memory for recordings."""
        if device not in self._streams:
            self._streams[device] = _Stream(device)
        return _CudaPool(device, self._streams[device])


class _Stream:
    """The stream on which all graphs of a model are captured, and so the work space of libraries that they share.

    That space stays for good, so streams of models that are gone are used again.

    Args:
        device: Its device.
    """

    _spare: ClassVar[dict[torch.device, list[torch.cuda.Stream]]] = defaultdict(list)

    def __init__(self, device: torch.device) -> None:
        spare = self._spare[device]
        self.stream = spare.pop() if spare else torch.cuda.Stream(device)
        weakref.finalize(self, spare.append, self.stream)
        self._lock = threading.Lock()
        self._last: torch.cuda.Stream | None = None

    @contextlib.contextmanager
    def turn(self) -> Iterator[None]:
        with self._lock:
            stream = torch.cuda.current_stream(self.stream.device)
            if self._last is not None and self._last != stream:
                stream.wait_stream(self._last)
            self._last = stream
            yield


class _CudaPool:
    """A pool of PyTorch's allocator.

    Args:
        device: Its device.
        stream: Where graphs are captured.
    """

    # PyTorch's allocator of pinned memory goes on asking captures that failed.
    _failed: ClassVar[list[torch.cuda.CUDAGraph]] = []

    def __init__(self, device: torch.device, stream: _Stream) -> None:
        self.device, self._stream = device, stream
        self._handle = torch.cuda.graph_pool_handle()
        self._graphs: weakref.WeakSet[torch.cuda.CUDAGraph] = weakref.WeakSet()

    def turn(self) -> AbstractContextManager[None]:
        return self._stream.turn()

    def memory(self) -> int:
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved(self.device)

    def tape(
        self, forward: Callable[[], list[Tensor]], backward: Callable[[list[Tensor]], list[Tensor]] | None
    ) -> Taped:
        caller, generator = torch.cuda.current_stream(self.device), torch.cuda.default_generators[self.device.index]
        drawn = generator.get_state()  # a run with graphs draws what one without them does
        torch.cuda.synchronize(self.device)
        try:
            with torch.cuda.device(self.device), torch.cuda.stream(self._stream.stream):
                for _ in range(_WARM_UPS):
                    outputs = forward()
                    if not any(each.requires_grad for each in outputs):
                        backward = None
                    if backward is not None:
                        backward(outputs)
                    del outputs
                gc.collect()  # activations that hold one another would stay beside those of the capture
                graph, outputs = self._capture(forward)
                if backward is None:
                    return Taped(outputs, [], graph.replay, None)
                back, gradients = self._capture(lambda: backward(outputs))
                return Taped([each.detach() for each in outputs], gradients, graph.replay, back.replay)
        finally:
            generator.set_state(drawn)
            caller.wait_stream(self._stream.stream)

    def _capture(self, function: Callable[[], list[Tensor]]) -> tuple[torch.cuda.CUDAGraph, list[Tensor]]:
        graph = torch.cuda.CUDAGraph()
        if not self._graphs:  # a pool whose last graph is gone cannot be used again
            self._handle = torch.cuda.graph_pool_handle()
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()  # a capture cannot use what is kept for eager calls
        try:
            # Other threads, such as those that pin batches, may use the device meanwhile.
            graph.capture_begin(pool=self._handle, capture_error_mode="thread_local")
            out = function()
            graph.capture_end()
        except BaseException:
            self._end_failed(graph)
            raise
        self._graphs.add(graph)
        return graph, out

    def _end_failed(self, graph: torch.cuda.CUDAGraph) -> None:
        """End a capture that failed, which leaves PyTorch's allocator and generator as if it went on."""
        with contextlib.suppress(RuntimeError):  # it fails where the capture is broken, but the stream is free
            graph.capture_end()
        end = getattr(torch._C, "_cuda_endAllocateToPool", None) or getattr(torch._C, _END_IN_2_6)
        with contextlib.suppress(RuntimeError):  # nothing is left to end where `capture_end` got so far
            end(self.device.index, self._handle)
            torch._C._cuda_releasePool(self.device.index, self._handle)
            self._failed.append(graph)
        whole = torch.cuda.CUDAGraph()  # the generator is let go when a capture ends well
        whole.capture_begin(capture_error_mode="thread_local")
        torch.zeros(1, device=self.device)
        whole.capture_end()
