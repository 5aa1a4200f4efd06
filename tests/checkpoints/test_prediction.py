import pytest
import torch

from webui.checkpoints.prediction import measured_prediction


class Unet(torch.nn.Module):
    """Ideal networks for pictures that are all grey: what is to be predicted follows from the input alone."""

    config = {"in_channels": 4, "cross_attention_dim": 8}  # noqa: RUF012  # as diffusers has it

    def __init__(self, kind):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))
        self.kind = kind

    def forward(self, x, timestep, states, return_dict):
        assert timestep.tolist() == [999]
        assert states.shape == (1, 77, 8)
        assert not return_dict
        alpha, sigma = 0.068, 0.998
        if self.kind == "epsilon":
            return (x / sigma,)
        return (alpha * x / sigma + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(5)),)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_network_shows_what_it_predicts(kind):
    assert measured_prediction(Unet(kind), 999) == kind
