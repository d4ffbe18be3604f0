"""A service that all tests share; those that need other options start their own."""

from __future__ import annotations

import pytest
from serving import serving


@pytest.fixture(scope="session")
def service(model):
    with serving(model) as running:
        yield running
