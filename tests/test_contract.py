"""Every system in the catalog passes every check of the contract."""

import pytest
import torch

from repertory import catalog
from repertory.testing import CHECKS, Case

torch.set_num_threads(1)
SLUGS = list(catalog.entries())


@pytest.fixture(scope="session")
def cases(tmp_path_factory):
    made = {}

    def case(slug):
        if slug not in made:
            made[slug] = Case(slug, tmp_path_factory.mktemp(slug))
        return made[slug]

    return case


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("slug", [pytest.param(s, marks=pytest.mark.xdist_group(s)) for s in SLUGS])
def test_contract(slug, check, cases):
    check(cases(slug))
