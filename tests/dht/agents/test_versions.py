from __future__ import annotations

import itertools
import operator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dht.agents.versions import (
    COMPARISONS,
    MAX_COMPARATORS,
    Comparator,
    VersionRange,
    normalize_version,
    parse_range,
    precedence_of,
)
from synapse_p2p.exceptions import ConfigError

NUMBER = st.integers(0, 3).map(str)
IDENTIFIER = st.sampled_from(["0", "1", "2", "11", "alpha", "beta", "rc", "x-y", "0a", "A", "-"])
RELEASE = st.lists(NUMBER, min_size=3, max_size=3).map(".".join)
PRE_RELEASE = st.tuples(RELEASE, st.lists(IDENTIFIER, min_size=1, max_size=3)).map(lambda v: f"{v[0]}-{'.'.join(v[1])}")
VERSION = RELEASE | PRE_RELEASE
BUILD = st.sampled_from(["", "+5", "+exp.sha-1"])
RANGE = st.lists(
    st.tuples(st.sampled_from(sorted(COMPARISONS)), st.lists(NUMBER, min_size=1, max_size=3).map(".".join) | VERSION),
    min_size=1,
    max_size=4,
)


# An oracle in the words of semver.org section 11, written apart from the code


def compare(a: str, b: str) -> int:
    """Below, at or above zero as `a` comes before, with or after `b`. Both have three numbers."""
    (core_a, _, pre_a), (core_b, _, pre_b) = (text.partition("+")[0].partition("-") for text in (a, b))
    for x, y in zip(core_a.split("."), core_b.split("."), strict=True):
        if int(x) != int(y):
            return int(x) - int(y)
    if not pre_a or not pre_b:
        return bool(pre_b) - bool(pre_a)
    for x, y in zip(pre_a.split("."), pre_b.split("."), strict=False):
        if x == y:
            continue
        if x.isdigit() and y.isdigit():
            return int(x) - int(y)
        if x.isdigit() != y.isdigit():
            return -1 if x.isdigit() else 1
        return -1 if x.encode() < y.encode() else 1
    return pre_a.count(".") - pre_b.count(".")


def full(text: str) -> str:
    return text + ".0" * (2 - text.count(".")) if "-" not in text else text


def is_taken(version: str, comparators: list[tuple[str, str]]) -> bool:
    if "-" in version:
        numbers = version.partition("-")[0]
        if not any(symbol != "!=" and bound.startswith(numbers + "-") for symbol, bound in comparators):
            return False
    signs = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
    signs |= {"==": operator.eq, "!=": operator.ne}
    return all(signs[symbol](compare(version, full(bound)), 0) for symbol, bound in comparators)


@pytest.mark.parametrize(
    "ascending",
    [
        ["1.0.0", "2.0.0", "2.1.0", "2.1.1"],
        ["1.0.0-alpha", "1.0.0"],
        [
            "1.0.0-alpha",
            "1.0.0-alpha.1",
            "1.0.0-alpha.beta",
            "1.0.0-beta",
            "1.0.0-beta.2",
            "1.0.0-beta.11",
            "1.0.0-rc.1",
            "1.0.0",
        ],
    ],
)
def test_the_examples_of_semver_section_11_are_in_their_order(ascending: list[str]):
    precedences = [precedence_of(version) for version in ascending]

    assert all(earlier < later for earlier, later in itertools.pairwise(precedences))


@given(VERSION, VERSION, BUILD, BUILD)
def test_versions_compare_as_the_oracle_says_and_builds_do_not_count(a: str, b: str, build_a: str, build_b: str):
    first, second = precedence_of(a + build_a), precedence_of(b + build_b)

    assert (first > second) - (first < second) == (compare(a, b) > 0) - (compare(a, b) < 0)


@pytest.mark.parametrize(
    ("written", "normal"),
    [
        ("", ""),
        ("2", "2.0.0"),
        ("2.1", "2.1.0"),
        ("2.1.0", "2.1.0"),
        ("0.0.0", "0.0.0"),
        ("1.0.0-alpha.1", "1.0.0-alpha.1"),
        ("1.0.0-0a.-.x-y", "1.0.0-0a.-.x-y"),
        ("1.0.0+001", "1.0.0+001"),
        ("1.0.0-rc.1+exp.sha", "1.0.0-rc.1+exp.sha"),
    ],
)
def test_a_version_is_given_all_its_numbers(written: str, normal: str):
    assert normalize_version(written) == normal
    assert normalize_version(normal) == normal


@pytest.mark.parametrize(
    "text",
    [
        "latest",
        "v1.2.3",
        "1.2.3.4",
        "01.2.3",
        "1.02.3",
        "1.",
        ".1",
        "1..2",
        "-1",
        "1-rc.1",
        "1.2-rc.1",
        "1.2+5",
        "1.2.3-",
        "1.2.3-01",
        "1.2.3-a..b",
        "1.2.3+",
        "1.2.3-\u00e9",
        "\u0661.2.3",
        "1.2.3\n",
        " 1.2.3",
        "1.2.3-\u0661",
    ],
    ids=repr,
)
def test_text_that_is_no_version_is_refused_with_what_to_write(text: str):
    with pytest.raises(ConfigError, match=r"no semantic version: write '2', '2\.1' or '2\.1\.0'"):
        normalize_version(text)
    assert precedence_of(text) is None


@pytest.mark.parametrize("text", ["1" * 33, "1" * 31, "1" * 30 + ".2"])
def test_a_version_that_does_not_travel_is_refused(text: str):
    with pytest.raises(ConfigError, match="32"):
        normalize_version(text)


def test_a_version_is_text():
    with pytest.raises(ConfigError, match="not float"):
        normalize_version(1.2)


@given(st.text(max_size=34))
def test_any_text_is_a_version_or_none(text: str):
    try:
        normal = normalize_version(text)
    except ConfigError:
        return

    assert not text or precedence_of(text) == precedence_of(normal)


@given(RANGE, VERSION)
def test_a_range_takes_what_the_oracle_takes(comparators: list[tuple[str, str]], version: str):
    found = VersionRange(tuple(Comparator(*each) for each in comparators))

    assert found.contains(version) == is_taken(version, comparators)


@given(RANGE, st.lists(VERSION, max_size=20))
def test_a_range_that_is_refused_takes_nothing(comparators: list[tuple[str, str]], versions: list[str]):
    text = ",".join(symbol + version for symbol, version in comparators)
    try:
        found = parse_range(text)
    except ConfigError:
        tried = [*versions, *(full(version) for _, version in comparators)]
        assert not any(is_taken(version, comparators) for version in tried)
    else:
        assert parse_range(str(found)) == found


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        (">=2,<3", ["2.0.0", "2", "2.9.9"], ["1.9.9", "3.0.0", "3.0.0-beta", "2.1.0-rc.1", "", "latest"]),
        ("==2", ["2.0.0", "2.0.0+5"], ["2.0.1", "2.0.0-rc.1"]),
        (" >= 2 , != 2.1 ", ["2.0.0", "2.1.1"], ["2.1.0", "2.1"]),
        (">2", ["2.0.1"], ["2.0.0"]),
        ("<=2.0.0-rc.2", ["1.0.0", "2.0.0-rc.1", "2.0.0-alpha"], ["2.0.0", "1.0.0-rc.1"]),
        ("!=1.0.0-rc.1", ["1.0.0"], ["1.0.0-rc.1", "1.0.0-rc.2", ""]),
        (">=2.0.0-rc.1", ["2.0.0-rc.2", "2.0.0", "2.1.0"], ["2.0.0-beta", "2.1.0-rc.1"]),
    ],
)
def test_a_range_means_what_the_page_says(text: str, inside: list[str], outside: list[str]):
    found = parse_range(text)

    assert [version for version in [*inside, *outside] if found.contains(version)] == inside


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (">=3,<2", "no version is in the range"),
        (">2,<=2", "no version is in the range"),
        ("==1,==2", "no version is in the range"),
        ("==1,!=1", "no version is in the range"),
        ("==1,>1", "no version is in the range"),
        ("=2", "write '=='"),
        ("~=1.4", "write '>=1.4,<2'"),
        ("^1.4", "write '>=1.4,<2'"),
        ("=>2", "compares no versions"),
        ("", "no range of versions"),
        (">=", "no range of versions"),
        (">=2,", "no range of versions"),
        (">=2 <3", "no range of versions"),
        (">=two", "no semantic version"),
        ("==1.0.0+5", "leave out what follows"),
        (",".join([">=1"] * (MAX_COMPARATORS + 1)), "1 to 4 comparators"),
    ],
)
def test_a_mistake_in_a_range_is_told_in_a_sentence(text: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        parse_range(text)


def test_a_comparator_needs_a_version():
    with pytest.raises(ConfigError, match="a version has to follow '>='"):
        Comparator(">=", "")
