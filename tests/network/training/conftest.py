"""What all tests of fine-tuning share."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small wait for threads far longer than they take."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
