import pytest
import torch
from hypothesis import settings

settings.register_profile("deterministic", derandomize=True, deadline=None)
settings.load_profile("deterministic")

# On vectors this short a second thread only waits for the first.
torch.set_num_threads(1)


@pytest.fixture(scope="module", autouse=True)
def float64():
    """Torch keeps NAdam's product of momenta in the default dtype."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)
