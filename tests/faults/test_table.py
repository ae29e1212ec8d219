"""The table of faults names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from conftest import ROOT

TABLE = Path(__file__).with_name("README.md").read_text()
NAMED = sorted(set(re.findall(r"(test_\w+\.py)(?:::(test_\w+))?", TABLE)))


@pytest.mark.parametrize(("file", "test"), NAMED, ids=lambda each: str(each))
def test_a_test_of_the_table_exists(file, test):
    (path,) = (ROOT / "tests").rglob(file)
    assert not test or re.search(rf"^(async )?def {test}\b", path.read_text(), re.MULTILINE), test
