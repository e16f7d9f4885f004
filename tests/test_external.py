"""A system of another package, announced by an entry point, is listed, fits, and passes the contract."""

import sys

import pytest
import torch

from repertory import catalog
from repertory.testing import CHECKS, Case

torch.set_num_threads(1)
pytestmark = pytest.mark.xdist_group("toy")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    site = tmp_path_factory.mktemp("site")
    info = site / "toy-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[repertory.systems]\ntoy = tests.toy\n")
    sys.path.insert(0, str(site))
    catalog.entries.cache_clear()
    yield Case("toy", tmp_path_factory.mktemp("toy"))
    sys.path.remove(str(site))
    catalog.entries.cache_clear()


def test_is_listed(case):
    assert "toy" in [card.slug for card in catalog.list_systems()]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
def test_contract(case, check):
    check(case)
