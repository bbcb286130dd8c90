from __future__ import annotations

import errno
import logging
import subprocess
import sys

import pytest

from synapse_p2p.transport import descriptors
from synapse_p2p.transport.descriptors import DescriptorShortage, descriptor_limit, is_out_of_descriptors


def test_the_limit_of_the_process_is_known_where_there_is_one(monkeypatch: pytest.MonkeyPatch):
    resource = pytest.importorskip("resource")
    limits = {resource.RLIM_INFINITY: None, 1024: 1024}

    for soft, expected in limits.items():
        monkeypatch.setattr(resource, "getrlimit", lambda kind, soft=soft: (soft, soft))
        assert descriptor_limit() == expected


def test_without_the_module_the_limit_is_unknown(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(descriptors, "resource", None)

    assert descriptor_limit() is None


def test_the_package_imports_on_systems_without_the_module():
    program = "import sys; sys.modules['resource'] = None; import synapse_p2p.server, synapse_p2p.transport.pool"

    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("error", "is_shortage"),
    [
        (OSError(errno.EMFILE, "of the process"), True),
        (OSError(errno.ENFILE, "of the machine"), True),
        (OSError(errno.ECONNREFUSED, "nobody listens"), False),
        (OSError("several"), False),
        (ValueError(errno.EMFILE), False),
        (None, False),
    ],
)
def test_a_shortage_is_told_from_other_failures(error: Exception | None, is_shortage: bool):
    assert is_out_of_descriptors(error) == is_shortage


def test_a_shortage_that_goes_on_is_one_line_a_minute_with_a_count(caplog: pytest.LogCaptureFixture):
    now, strangers = 1000.0, 100
    lines = []

    def drop_oldest() -> bool:
        nonlocal strangers
        strangers -= 1
        return strangers >= 0

    shortage = DescriptorShortage(drop_oldest, lambda: now)
    for _ in range(241):
        has_room = shortage.make_room()
        assert has_room == (strangers >= 0)
        lines += [(now, record.levelno, record.args) for record in caplog.records]
        caplog.clear()
        now += 0.5

    limit = descriptor_limit() or "unknown"
    assert lines == [(1000.0 + 60 * n, logging.WARNING, (limit, count)) for n, count in enumerate((1, 120, 120))]
