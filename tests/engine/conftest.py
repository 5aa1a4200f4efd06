"""Tiny Stable Diffusion parts with random weights, and a folder that hands them out."""

import pytest
import torch


@pytest.fixture(scope="session")
def diffusers():
    from webui.hardware import torchvision_operators

    torchvision_operators.declare()
    import diffusers

    return diffusers


@pytest.fixture(scope="session")
def betas():
    return {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}


@pytest.fixture(scope="session")
def alphas_cumprod():
    """Stable Diffusion 1's, float64."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)
