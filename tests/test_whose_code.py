import asyncio

import pytest

from simulations import real_world
from synapse_p2p.whose_code import is_library, is_own


@pytest.mark.parametrize(
    ("filename", "is_one"),
    [
        (asyncio.__file__, True),
        (pytest.__file__, True),
        (real_world.__file__, True),
        ("<frozen importlib._bootstrap>", True),
        (__file__, False),
        ("<string>", False),
        ("agent.py", False),
    ],
)
def test_libraries_are_told_from_the_users_files(filename, is_one):
    assert is_library(filename) is is_one


def test_our_packages_are_told_from_other_libraries():
    assert is_own(real_world.__file__)
    assert not is_own(asyncio.__file__)
    assert not is_own(__file__)
