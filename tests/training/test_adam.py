"""The optimiser equals PyTorch's Adam, without the imports that make PyTorch's slow to load."""

import torch
from torch import nn
from torch.nn import functional as F

from raysweep.training.adam import Adam


def test_reference_it_is_pytorchs(tmp_path):
    torch.manual_seed(0)
    x, target = torch.randn(20, 5), torch.randn(20, 3)
    networks = [nn.Linear(5, 3) for _ in range(2)]
    networks[1].load_state_dict(networks[0].state_dict())
    ours = Adam([{"params": [networks[0].weight], "weight_decay": 0.1}, {"params": [networks[0].bias]}], lr=0.01)
    groups = [{"params": [networks[1].weight], "weight_decay": 0.1}, {"params": [networks[1].bias]}]
    torchs = torch.optim.Adam(groups, lr=0.01, fused=True)
    for step in range(6):
        for network, optimizer in zip(networks, (ours, torchs), strict=True):
            optimizer.zero_grad()
            F.mse_loss(network(x), target).backward()
            optimizer.step()
        if step == 2:  # each optimiser continues from the other's saved state
            torch.save((ours.state_dict(), torchs.state_dict()), tmp_path / "saved.pt")
            saved = torch.load(tmp_path / "saved.pt", weights_only=True)
            torchs.load_state_dict(saved[0])
            ours.load_state_dict(saved[1])
    for one, other in zip(networks[0].parameters(), networks[1].parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.requires_grad
