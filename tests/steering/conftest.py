"""One thread, and the one warning that diffusers gives about itself is not an error."""

import pytest
import torch


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """diffusers' sigma tables convert tensors with ``np.array(tensor)``, which numpy 2 warns about."""
    message = "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"
    for item in items:
        if "steering" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings(message))


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
