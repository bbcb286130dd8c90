from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest


@pytest.fixture
def nothing_is_left(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """At the end of the test no socket and no future was forgotten, and nothing unexpected was logged."""
    yield
    gc.collect()  # a socket or a future that was forgotten says so now, and that is an error here
    allowed = "ignore that they were cancelled"
    records = [*caplog.get_records("call"), *caplog.records]
    assert [record for record in records if record.levelno > logging.INFO and allowed not in record.msg] == []
