"""Warnings that diffusers and torchsde give about themselves are not errors."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """diffusers' sigma tables hand tensors to numpy 2, and its Brownian tree is asked a rounding error too far."""
    messages = (
        "ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning",
        "ignore:__array_wrap__ must accept context:DeprecationWarning",
        "ignore::feynkac.steering.SteeringWarning",  # what changes the law is said; tests ask for it where it matters
        "ignore:Should have t[ab][<>]=t[01]:UserWarning",
    )
    for item in items:
        if "steering" in item.path.parts:
            for message in messages:
                item.add_marker(pytest.mark.filterwarnings(message))
