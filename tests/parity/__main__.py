"""``python -m tests.parity --fixtures DIR [--slug S]``: one line per part, then the counts."""

from __future__ import annotations

import argparse
import sys
import traceback
from pathlib import Path

import torch

from tests.parity.runner import FIXTURES, Fixture, differences, fixtures


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.parity", description=__doc__)
    parser.add_argument(
        "--fixtures", type=Path, default=FIXTURES, help="a folder <slug>/<part>.json (default: the project's own)"
    )
    parser.add_argument("--slug", help="only this system")
    options = parser.parse_args()
    torch.set_num_threads(1)
    passed = failed = 0
    for path in fixtures(options.fixtures, options.slug):
        try:
            wrong = differences(Fixture.read(path))
        except Exception as error:  # a crash of one part must not hide the others
            wrong = [f"{type(error).__name__}: {error} ({traceback.extract_tb(error.__traceback__)[-1].name})"]
        passed += not wrong
        failed += bool(wrong)
        print(
            f"{'FAIL' if wrong else 'ok  '}  {path.parent.name}/{path.stem}"
            + ("  " + "; ".join(wrong) if wrong else "")
        )
    print(f"{passed} passed, {failed} failed")
    return 1 if failed or not passed else 0


if __name__ == "__main__":
    sys.exit(main())
