"""Every committed fixture passes at its own tolerance."""

import pytest

from tests.parity.runner import Fixture, differences, fixtures


@pytest.mark.parametrize("path", list(fixtures()), ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_parity(path):
    assert differences(Fixture.read(path)) == []
