"""One thread: results and times of the tests do not depend on the machine's cores."""

import os
from pathlib import Path

import pytest
import torch

from repertory import catalog

torch.set_num_threads(1)
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """The system of another package, announced as such a package announces it, here and to processes started here."""
    site = tmp_path_factory.mktemp("site")
    info = site / "toy-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toy\nVersion: 0.1\n")
    (info / "entry_points.txt").write_text("[repertory.systems]\ntoy = tests.toy\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(site))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(ROOT / "src"), str(ROOT)]))
        catalog.entries.cache_clear()
        yield
    catalog.entries.cache_clear()
