"""A service that the tests of a module share; those that need other options start their own.

It ends with its module: other tests count the threads and the child processes of this process.
"""

from __future__ import annotations

import pytest
from serving import serving


@pytest.fixture(scope="module")
def service(model):
    with serving(model) as running:
        yield running
