import pytest


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Tensors this small lose more time than they win when threads wait for each other on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
