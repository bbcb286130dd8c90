"""Keys in files: what is read, what is refused, who holds it, and what a sudden end leaves."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import pickle
import random
import re
import shlex
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from synapse_p2p import ConfigError, Identity, keyfile, load_identity
from synapse_p2p.keyfile import KeyFault, KeyFile, KeyFileError, load_or_create, read_identity

ROOT = Path(__file__).parents[1]
SEED = bytes(range(32))
LINE = b"synapse-key-1 000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f 1dea236f\n"
needs_modes = pytest.mark.skipif(os.name != "posix", reason="there are no such modes")
needs_links = pytest.mark.skipif(os.name != "posix", reason="links need rights there")
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")


def draw(size: int) -> bytes:
    """The only chance these tests know."""
    return SEED[:size]


def write_key(path: Path, content: bytes = LINE, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@contextlib.contextmanager
def process(program: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A Python program with a pipe to it and one from it; killed in the end."""
    command = [sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    ) as popen:
        try:
            yield popen
        finally:
            popen.kill()


# One key


def test_a_new_key_is_one_line_that_only_its_owner_reads_in_a_folder_that_only_its_owner_enters(tmp_path: Path):
    path = tmp_path / "a" / "b" / "node.key"

    with KeyFile.open(path, token_bytes=draw) as key_file:
        assert key_file.identity == Identity.from_seed(SEED)
        assert key_file.path == path

    assert path.read_bytes() == LINE
    assert names_in(path.parent) == ["node.key", "node.key.lock"]
    if os.name == "posix":
        assert [entry.stat().st_mode & 0o777 for entry in (path, path.parent, path.parent.parent)] == [
            0o600,
            0o700,
            0o700,
        ]


def test_a_key_is_the_same_when_it_is_opened_again_and_two_keys_differ(tmp_path: Path):
    with KeyFile.open(tmp_path / "one.key") as one, KeyFile.open(tmp_path / "two.key") as two:
        first, other = one.identity, two.identity
    with KeyFile.open(tmp_path / "one.key") as again:
        assert again.identity == first

    assert other != first
    assert read_identity(tmp_path / "one.key") == first


@pytest.mark.parametrize("content", [LINE, LINE.rstrip(), LINE.rstrip() + b"\r\n"], ids=["line", "bare", "crlf"])
def test_a_key_is_read_however_an_editor_ends_its_line(tmp_path: Path, content: bytes):
    path = write_key(tmp_path / "node.key", content)

    with KeyFile.open(path) as key_file:
        assert key_file.identity == Identity.from_seed(SEED)

    assert path.read_bytes() == content


def test_home_may_be_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))

    with KeyFile.open("~/keys/node.key") as key_file:
        assert key_file.path == tmp_path / "keys" / "node.key"


def test_a_key_that_is_not_there_is_not_made_by_a_reader(tmp_path: Path):
    with pytest.raises(KeyFileError, match="there is no key file"):
        read_identity(tmp_path / "node.key")

    assert names_in(tmp_path) == []


# What is refused


def test_a_key_with_any_bit_changed_is_refused():
    number = int.from_bytes(LINE, "big")
    changed = [(number ^ 1 << bit).to_bytes(len(LINE), "big") for bit in range(8 * len(LINE))]

    assert [content for content in changed if not isinstance(keyfile._parse(content), KeyFault)] == []


def test_a_key_cut_off_anywhere_is_refused():
    parts = [LINE[:size] for size in range(len(LINE) - 1)]

    assert [content for content in parts if not isinstance(keyfile._parse(content), KeyFault)] == []


@pytest.mark.parametrize(
    ("content", "fault", "text"),
    [
        (LINE[:50], KeyFault.DAMAGED, "does not fit its checksum. Put a copy back, or move it away"),
        (LINE.upper().replace(b"SYNAPSE-KEY", b"synapse-key"), KeyFault.DAMAGED, "checksum"),
        (LINE + LINE, KeyFault.DAMAGED, "checksum"),
        (LINE.replace(b"-1 ", b"-2 "), KeyFault.NEWER, "a later release: this one reads format 1"),
        (b"", KeyFault.FOREIGN, "is no key file: it does not begin with `synapse-key-1`. Name another file"),
        (b"-----BEGIN OPENSSH PRIVATE KEY-----\n", KeyFault.FOREIGN, "is no key file"),
        (b" " + LINE, KeyFault.FOREIGN, "is no key file"),
        (b"\xff\xfe" + LINE, KeyFault.FOREIGN, "is no key file"),
    ],
    ids=["cut", "capitals", "twice", "newer", "empty", "another's", "indented", "wide"],
)
def test_what_is_no_key_is_refused_with_the_reason_and_stays_as_it_is(
    tmp_path: Path, content: bytes, fault: KeyFault, text: str
):
    path = write_key(tmp_path / "node.key", content)

    with pytest.raises(KeyFileError, match=re.escape(text)) as refused:
        KeyFile.open(path)

    assert (refused.value.fault, str(path) in str(refused.value)) == (fault, True)
    assert isinstance(refused.value, ConfigError)
    assert path.read_bytes() == content


def test_a_file_of_a_gigabyte_is_refused_and_not_read(tmp_path: Path):
    path = write_key(tmp_path / "node.key", b"synapse-key-1 ")
    os.truncate(path, 2**30)

    with pytest.raises(KeyFileError, match="damaged"):
        KeyFile.open(path)


@needs_modes
@pytest.mark.parametrize("mode", [0o640, 0o620, 0o604, 0o602, 0o610, 0o777])
def test_a_key_that_others_can_read_or_write_is_refused_with_the_line_to_type(tmp_path: Path, mode: int):
    path = write_key(tmp_path / "it's mine.key", mode=mode)

    with pytest.raises(KeyFileError, match=rf"\(mode {mode:04o}\)") as refused:
        KeyFile.open(path)
    subprocess.run(shlex.split(str(refused.value).partition("type: ")[2]), check=True)

    assert refused.value.fault is KeyFault.EXPOSED
    with KeyFile.open(path) as key_file:
        assert key_file.identity == Identity.from_seed(SEED)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root gives files away")
def test_a_key_of_somebody_else_is_refused(tmp_path: Path):
    path = write_key(tmp_path / "node.key")
    os.chown(path, 12345, -1)

    with pytest.raises(KeyFileError, match="belongs to user 12345, and this process runs as user 0") as refused:
        KeyFile.open(path)

    assert refused.value.fault is KeyFault.EXPOSED


def test_a_folder_is_no_key(tmp_path: Path):
    (tmp_path / "node.key").mkdir()

    with pytest.raises(KeyFileError, match=r"is a folder, and a key is kept in a file|denied"):
        KeyFile.open(tmp_path / "node.key")


@needs_links
def test_a_pipe_is_no_key_and_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "node.key", 0o600)

    with pytest.raises(KeyFileError, match="no regular file"):
        KeyFile.open(tmp_path / "node.key")


@needs_links
def test_links_that_lead_in_a_circle_are_refused(tmp_path: Path):
    (tmp_path / "a.key").symlink_to("b.key")
    (tmp_path / "b.key").symlink_to("a.key")

    with pytest.raises(KeyFileError, match="links lead in a circle") as refused:
        KeyFile.open(tmp_path / "a.key")

    assert refused.value.fault is KeyFault.STORAGE


@pytest.mark.parametrize("path", ["nul\0.key", "x" * 5_000, "file/node.key"])
def test_a_path_that_cannot_be_one_is_refused(tmp_path: Path, path: str):
    (tmp_path / "file").touch()

    with pytest.raises(KeyFileError) as refused:
        KeyFile.open(os.path.join(tmp_path, path))

    assert refused.value.fault is KeyFault.STORAGE


# Who holds it


def test_a_key_that_is_held_is_refused_and_free_again_after_close(tmp_path: Path):
    path = tmp_path / "node.key"
    first = KeyFile.open(path)

    with pytest.raises(KeyFileError, match="in use by this very process: one key is one node") as refused:
        KeyFile.open(path)
    first.close()
    first.close()

    assert (refused.value.fault, refused.value.pid) == (KeyFault.IN_USE, os.getpid())
    with KeyFile.open(path) as again:
        assert again.identity == first.identity


@needs_links
def test_a_link_to_a_key_is_the_same_key(tmp_path: Path):
    (tmp_path / "link.key").symlink_to("node.key")

    with KeyFile.open(tmp_path / "link.key") as key_file:
        with pytest.raises(KeyFileError, match="in use"):
            KeyFile.open(tmp_path / "node.key")

        assert read_identity(tmp_path / "node.key") == key_file.identity


HOLDER = """
    import sys
    from synapse_p2p.keyfile import KeyFile, KeyFileError
    sys.stdin.readline()
    try:
        key_file = KeyFile.open(sys.argv[1])
    except KeyFileError as error:
        print(error.fault, error.pid, flush=True)
    else:
        print("holds", key_file.identity.node_id.hex(), flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_told_who_holds_the_key_and_gets_it_when_that_one_is_killed(tmp_path: Path):
    path = tmp_path / "node.key"

    with process(HOLDER, path) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdin.write("go\n")
        holder.stdin.flush()
        said = holder.stdout.readline().split()
        with pytest.raises(KeyFileError, match=f"in use by process {holder.pid}") as refused:
            KeyFile.open(path)
        holder.kill()
        holder.wait()

    assert refused.value.pid == holder.pid
    with KeyFile.open(path) as key_file:
        assert said == ["holds", key_file.identity.node_id.hex()]


def test_of_processes_that_start_at_once_one_makes_the_key_and_holds_it(tmp_path: Path):
    with contextlib.ExitStack() as stack:
        crowd = [stack.enter_context(process(HOLDER, tmp_path / "new" / "node.key")) for _ in range(4)]
        for each in crowd:
            assert each.stdin is not None
            each.stdin.write("go\n")
            each.stdin.flush()
        said = [each.stdout.readline().split() for each in crowd if each.stdout is not None]

    holders = [words for words in said if words[0] == "holds"]
    assert len(holders) == 1
    assert [words[:2] for words in said if words not in holders] == [["in", "use"]] * 3
    assert names_in(tmp_path / "new") == ["node.key", "node.key.lock"]
    assert read_identity(tmp_path / "new" / "node.key").node_id.hex() == holders[0][1]


def test_without_locks_two_that_make_a_key_end_with_one(tmp_path: Path):
    path = tmp_path / "node.key"
    made: list[Identity] = []

    def draw_late(size: int) -> bytes:
        if size == len(SEED):  # while this one draws, another is faster
            made.append(load_or_create(path, token_bytes=None, is_locked=False))
        return draw(size)

    identity = load_or_create(path, token_bytes=draw_late, is_locked=False)

    assert [identity] == made
    assert identity != Identity.from_seed(SEED)
    assert names_in(tmp_path) == ["node.key"]


def test_the_package_works_without_file_locks_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    monkeypatch.setattr(sys, "platform", "wasi")

    with KeyFile.open(tmp_path / "node.key") as key_file, KeyFile.open(tmp_path / "node.key") as other:
        assert not key_file.is_locked
        assert other.identity == key_file.identity

    assert caplog.text.count("nothing here keeps a second process from using") == 2


def test_an_identity_for_the_whole_process_is_the_same_for_each_spelling_of_its_path(tmp_path: Path):
    identity = load_identity(tmp_path / "node.key")

    assert load_identity(f"{tmp_path}/./node.key") is identity
    assert load_identity(tmp_path / "other.key") != identity
    with pytest.raises(KeyFileError, match="this very process"):
        KeyFile.open(tmp_path / "node.key")


@needs_fork
def test_a_forked_child_is_another_process_and_does_not_let_go_of_what_its_parent_holds(tmp_path: Path):
    program = """
        import os, sys
        from synapse_p2p.keyfile import KeyFile, KeyFileError, load_identity
        path = sys.argv[1]
        load_identity(path + ".all")
        with KeyFile.open(path) as key_file:
            child = os.fork()
            if child == 0:
                key_file.close()
                faults = []
                for act in (KeyFile.open, lambda path: load_identity(path + ".all")):
                    try:
                        act(path)
                    except KeyFileError as error:
                        faults.append((error.fault, error.pid == os.getppid()))
                os.write(1, f"{faults == [('in use', True)] * 2}\\n".encode())
                os._exit(0)
            os.waitpid(child, 0)
        KeyFile.open(path)
        print("free", flush=True)
    """

    with process(program, tmp_path / "node.key") as popen:
        output, _ = popen.communicate(timeout=20)

    assert output.split() == ["True", "free"]


# A sudden end


@needs_fork
def test_a_process_killed_at_any_moment_leaves_no_key_or_a_whole_one(tmp_path: Path):
    program = """
        import itertools, os, random, signal, sys, time
        from pathlib import Path
        from synapse_p2p.keyfile import KeyFile
        rng, folder = random.Random(7), Path(sys.argv[1])
        for round in range(30):
            child = os.fork()
            if child == 0:
                for number in itertools.count():
                    KeyFile.open(folder / f"{round}-{number}" / "node.key").close()
            time.sleep(rng.uniform(0, 0.03))
            while round == 29 and not list(folder.glob("29-*/node.key")):
                time.sleep(0.001)  # so that something is kept on a machine that has much to do
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        print("done", flush=True)
    """

    with process(program, tmp_path) as popen:
        output, _ = popen.communicate(timeout=30)

    assert output == "done\n"
    kept = 0
    for folder in tmp_path.iterdir():
        is_there = (folder / "node.key").exists()
        before = read_identity(folder / "node.key") if is_there else None
        with KeyFile.open(folder / "node.key") as key_file:
            assert before in (None, key_file.identity)
        assert names_in(folder) == ["node.key", "node.key.lock"]
        kept += is_there
    assert kept > 0


class FailingOS:
    """The module `os` whose nth call that touches a file does not happen, and none after it where it is a crash."""

    FALLIBLE = frozenset({"open", "read", "fsync", "link", "rename", "close", "fstat", "listdir"})

    def __init__(self, at: int, failure: BaseException, *, is_crash: bool) -> None:
        self._calls = itertools.count()
        self._at = at
        self._failure = failure
        self._is_crash = is_crash
        self.has_failed = False

    def __getattr__(self, name: str) -> object:
        value = getattr(os, name)
        return self._wrapped(value) if name in self.FALLIBLE else value

    def _wrapped(self, function):
        def call(*arguments: object, **options: object) -> object:
            number = next(self._calls)
            if number == self._at or (self._is_crash and number > self._at):
                self.has_failed = True
                raise self._failure
            return function(*arguments, **options)

        return call


class Crash(BaseException):
    """The end of a process: no code of it runs any more, or at least none of its calls have an effect."""


@needs_modes
def test_a_crash_between_any_two_calls_leaves_no_key_or_a_whole_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for at in itertools.count():
        path = tmp_path / str(at) / "node.key"
        path.parent.mkdir()
        faulty = FailingOS(at, Crash(), is_crash=True)
        with monkeypatch.context() as patch:
            patch.setattr(keyfile, "os", faulty)
            patch.setattr(Path, "unlink", lambda path, missing_ok: None)
            with contextlib.suppress(Crash):
                load_or_create(path, token_bytes=draw, is_locked=True)
        if not faulty.has_failed:
            break

        assert path.read_bytes() == LINE if path.exists() else True
        load_or_create(path, token_bytes=None, is_locked=True)
        assert names_in(path.parent) == ["node.key"]
    assert at >= 8


@needs_modes
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EIO])
def test_what_the_disk_refuses_is_an_error_in_words_and_nothing_half_written_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
):
    refusals = []
    for at in itertools.count():
        path = tmp_path / str(at) / "node.key"
        path.parent.mkdir()
        faulty = FailingOS(at, OSError(number, os.strerror(number)), is_crash=False)
        with monkeypatch.context() as patch:
            patch.setattr(keyfile, "os", faulty)
            try:
                load_or_create(path, token_bytes=draw, is_locked=True)
            except KeyFileError as error:
                refusals.append(error)
        if not faulty.has_failed:
            break

        assert names_in(path.parent) in ([], ["node.key"])
        assert path.read_bytes() == LINE if path.exists() else True
    assert len(refusals) >= 5
    assert all(refusal.fault is KeyFault.STORAGE for refusal in refusals)
    assert all(os.strerror(number) in str(refusal) for refusal in refusals)
    assert ("Make room on that disk" in str(refusals[0])) == (number == errno.ENOSPC)


@needs_modes
def test_a_disk_that_is_full_in_the_middle_of_a_key_leaves_nothing_of_it(tmp_path: Path):
    program = """
        import resource, signal, sys
        from synapse_p2p.keyfile import KeyFile, KeyFileError
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))  # bytes: the system itself refuses the rest of the line
        try:
            KeyFile.open(sys.argv[1])
        except KeyFileError as error:
            print(error.fault, flush=True)
    """

    with process(program, tmp_path / "node.key") as popen:
        output, _ = popen.communicate(timeout=20)

    assert output == "storage\n"
    assert names_in(tmp_path) == ["node.key.lock"]


@needs_modes
def test_a_file_system_without_second_names_has_keys_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*paths: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)

    with KeyFile.open(tmp_path / "node.key", token_bytes=draw):
        assert (tmp_path / "node.key").read_bytes() == LINE

    assert names_in(tmp_path) == ["node.key", "node.key.lock"]


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody can write")
def test_a_folder_that_nobody_can_make_is_named_in_the_error():
    with pytest.raises(KeyFileError, match=r"cannot be used: .* \(/proc/keys-of-ours\)\. Let this user") as refused:
        KeyFile.open("/proc/keys-of-ours/node.key")

    assert refused.value.fault is KeyFault.STORAGE


def test_what_a_killed_process_left_is_taken_away_and_other_files_are_not(tmp_path: Path):
    write_key(tmp_path / "node.key")
    others = ["node.key.bak", "node.key.new", "node.key.backup.new", "notes.new", "other.key.0011223344556677.new"]
    for name in ("node.key.0011223344556677.new", "node.key.8899aabbccddeeff.new", *others):
        (tmp_path / name).touch()

    KeyFile.open(tmp_path / "node.key").close()

    assert names_in(tmp_path) == sorted(["node.key", "node.key.lock", *others])


# The secret


def test_the_secret_is_in_no_text_no_log_no_error_and_no_pickle(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    texts = []
    with KeyFile.open(tmp_path / "node.key", token_bytes=draw) as key_file:
        texts += [repr(key_file), str(key_file), repr(key_file.identity)]
        with pytest.raises(TypeError, match="private key"):
            pickle.dumps(key_file)
        for content in (LINE[:-3], LINE.replace(b"-1 ", b"-9 "), b"x" + LINE, LINE + b"\xff"):
            write_key(tmp_path / "bad.key", content)
            with pytest.raises(KeyFileError) as refused:
                KeyFile.open(tmp_path / "bad.key")
            texts += chain_of(refused.value)
            texts += [str(entry.frame.f_locals) for entry in refused.traceback[1:]]  # not the lines of this test
        with pytest.raises(KeyFileError) as refused:
            KeyFile.open(tmp_path / "node.key")
        texts += chain_of(refused.value)

    said = "\n".join([*texts, caplog.text])
    assert len(texts) >= 8
    for secret in (SEED.hex(), SEED.hex()[:16], repr(SEED)[2:20]):
        assert secret not in said


def chain_of(error: BaseException | None) -> list[str]:
    """An error and those behind it, in words."""
    found = []
    while error is not None:
        found += [str(error), repr(error), repr(vars(error))]
        error = error.__cause__ or error.__context__
    return found


def test_keys_drawn_by_default_are_of_the_systems_chance(tmp_path: Path):
    random.seed(1)
    with KeyFile.open(tmp_path / "a.key") as a:
        random.seed(1)
        with KeyFile.open(tmp_path / "b.key") as b:
            assert a.identity != b.identity
