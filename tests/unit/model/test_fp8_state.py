"""Shows that registering runs every layer and leaves scales and histories alone.

The modules here stand for Transformer Engine's, with its attributes; no FP8 product runs.
"""

from types import SimpleNamespace

import torch

from megatron_sts.model.fp8_state import register_fp8_layers


class Scaled(torch.nn.Module):
    """Has a state only where one was loaded, as Transformer Engine's modules before their first forward pass."""

    def __init__(self, loaded: float | None):
        super().__init__()
        self.loaded = loaded
        history = torch.full((2, 3), loaded or 0.0)
        self.fp8_meta = {"scaling_fwd": SimpleNamespace(amax_history=history)}

    def forward(self) -> None:
        self.fp8_meta["scaling_fwd"].amax_history[0] = 9.0

    def get_extra_state(self) -> torch.Tensor:
        if self.loaded is None:
            return torch.empty(0, dtype=torch.uint8)
        return self.fp8_meta["scaling_fwd"].amax_history.clone()

    def set_extra_state(self, state: torch.Tensor) -> None:
        self.fp8_meta["scaling_fwd"].amax_history.copy_(state)


def test_registering_runs_every_layer_and_leaves_no_trace():
    fresh, resumed = Scaled(None), Scaled(5.0)
    ran = []

    def forward() -> None:
        for module in (fresh, resumed):
            module()
            ran.append(float(module.fp8_meta["scaling_fwd"].amax_history.max()))

    register_fp8_layers([torch.nn.ModuleList([fresh, torch.nn.Identity(), resumed])], forward)
    assert ran == [9.0, 9.0]
    assert torch.equal(fresh.fp8_meta["scaling_fwd"].amax_history, torch.zeros(2, 3))
    assert torch.equal(resumed.fp8_meta["scaling_fwd"].amax_history, torch.full((2, 3), 5.0))
