"""The installation that `make demo` leaves."""

import pytest

from e2e.conftest import call, speak_with


@pytest.fixture(scope="session")
def demo(installation):
    """`make demo` on the fresh installation; its printed screen."""
    done = call("examples.demo", seconds=1500)
    assert done.returncode == 0, done.stdout[-6000:]
    speak_with(installation)
    return done.stdout
