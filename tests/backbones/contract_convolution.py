"""The temporal convolution beside or in place of temporal attention, as promises that every family keeps."""

from __future__ import annotations

import copy
from typing import Any

import torch

import aim_adapters as aim
from tests.backbones.cases import FRAMES, Case, loss, needs_machinery, wake


class ConvolutionPromises:
    """What holds of attention over frames holds of a convolution over frames: for one member of a family."""

    def test_convolution_runs_alike_in_all_ways_and_sees_one_clip_in_order(self, case: Case) -> None:
        needs_machinery(case)
        model = wake(aim.wrap_image_model(case.model().double(), FRAMES, temporal="both", drop_path=0.5)).train()
        runs = []
        for fused, memory in ((False, "fast"), ("auto", "balanced"), ("auto", "low")):
            aim.set_execution(model, fused=fused, memory=memory)  # type: ignore[arg-type]
            model.zero_grad()
            torch.manual_seed(0)  # all of them drop the same branches
            out = case.call(model, case.video().double())
            loss(out).backward()
            runs.append([out.detach(), *(p.grad.clone() for p in aim.trainable_parameters(model))])
        for run in runs[1:]:
            torch.testing.assert_close(run, runs[0], rtol=1e-8, atol=1e-10)
        wake(aim.wrap_image_model(aim.unwrap_image_model(model), FRAMES, temporal="conv")).eval()
        video = case.video().double().requires_grad_()
        out = case.call(model, video)
        loss(out[0]).backward()
        assert all(p.grad is not None and p.grad.any() for p in aim.trainable_parameters(model))
        assert video.grad is not None
        assert video.grad[0].any()
        assert not video.grad[1].any()
        with torch.no_grad():
            assert not torch.allclose(case.call(model, video.flip(1)), out, rtol=1e-4)

    def test_convolution_is_copied_saved_loaded_and_left_out_to_the_bit(self, case: Case, tmp_path: Any) -> None:
        needs_machinery(case)
        model, video = case.model().requires_grad_(False), case.video()
        image = case.averaged(model, video)
        wake(aim.wrap_image_model(model, FRAMES, temporal="conv", conv_kernel=5))
        aim.save_adapters(model, tmp_path)
        fresh = case.model()
        assert not any(aim.load_adapters(fresh, tmp_path))
        keys = aim.adapter_state_dict(fresh)
        assert not any("temporal." in key or key.endswith(("temporal_embedding", "temporal_bias")) for key in keys)
        with torch.no_grad():
            expected = case.call(model, video)
            assert torch.equal(case.call(fresh, video), expected)
            assert torch.equal(case.call(copy.deepcopy(model), video), expected)
            assert not torch.allclose(expected, image)
            with aim.disable_adapters(model):
                out = case.call(model, video)
            assert torch.equal(out, image) or not case.exact
            torch.testing.assert_close(out, image, rtol=1e-5, atol=1e-6)
        assert torch.equal(case.averaged(aim.unwrap_image_model(model), video), image)
