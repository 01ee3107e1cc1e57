"""Settings of every test: one torch thread, so that small tests do not wait for each other."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Tests are many and small; threads that meet at every operation make a busy machine crawl."""
    kept = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(kept)
