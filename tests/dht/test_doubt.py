from random import Random

import pytest

from dht.doubt import MAX_DOUBTS, Answers
from dht.region import Region

REGION = Region.of_radius(100, 20)  # the 20th lies at 100


def evenly(count: int, spacing: int = 5) -> list[int]:
    return [spacing * number for number in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "doubted_at_first", "thin"),
    [(20, False, False), (16, False, False), (15, True, False), (14, True, False), (13, True, True), (0, True, True)],
)
def test_few_answers_are_doubted_and_fewer_are_thin(count: int, doubted_at_first: bool, thin: bool):
    answers = Answers(REGION, evenly(count))

    assert answers.are_doubted(0) is doubted_at_first
    assert answers.are_thin is thin


def test_after_one_look_only_thin_answers_are_doubted_and_in_the_end_none():
    assert not Answers(REGION, evenly(15)).are_doubted(1)
    assert Answers(REGION, evenly(13)).are_doubted(MAX_DOUBTS - 1)
    assert not Answers(REGION, []).are_doubted(MAX_DOUBTS)


def test_a_crowd_that_lies_too_densely_does_not_stand_for_those_that_are_missing():
    region = Region.of_radius(1_000_000, 20)
    crowd = list(range(1, 21))  # so near that two or three of them are believed

    assert Answers(region, [*crowd, *evenly(8, 50_000)]).are_thin
    assert not Answers(region, [*crowd, *evenly(20, 50_000)]).are_thin


def test_the_order_of_answers_is_nothing_to_it():
    distances = evenly(15)
    Random(1).shuffle(distances)

    assert Answers(REGION, distances).are_doubted(0)
    assert not Answers(REGION, distances).are_thin


def test_holders_are_contradicted_by_others_inside_the_region_alone():
    answers = Answers(REGION, [*evenly(4), 101, 102])

    assert answers.contradict(3)
    assert not answers.contradict(4)
    assert not answers.contradict(0)  # nobody says anything that could be denied


def test_without_an_estimate_nothing_is_doubted():
    assert not Answers(Region.unknown(20), []).are_doubted(0)
