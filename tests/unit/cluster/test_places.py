"""How many answers an engine is given: what it works on, and a prompt's more; less where its KV cache is full."""

from megatron_nft.cluster.places import Places
from megatron_nft.rollout.api import Load


def load(running, waiting=0, kv_use=0.5):
    return Load(seconds=1.0, running=running, waiting=waiting, kv_use=kv_use)


def given(places, answers=4):
    """Prompts with so many answers that it takes now."""
    count = 0
    while places.has_room(answers):
        places.give(answers)
        count += 1
    return count


def test_an_engine_is_given_what_it_works_on_and_a_prompt_more():
    places = Places(16)
    assert given(places) == 5
    places.heard(load(16, waiting=1))
    assert given(places) == 1, "3 have ended: of 20 answers 17 are left"
    places.heard(load(9))
    assert given(places) == 3


def test_an_engine_whose_kv_cache_is_full_gets_no_more_than_it_can_run():
    places = Places(16)
    given(places)
    places.heard(load(10, waiting=10, kv_use=0.99))
    assert places.limit == 10 and given(places) == 0
    places.heard(load(10, waiting=3, kv_use=0.97))
    assert given(places) == 0, "what comes in now would be taken out again"
    places.heard(load(10, waiting=0, kv_use=0.9))
    assert given(places) == 1, "10 and a prompt more"
    places.heard(load(6, waiting=7, kv_use=0.98))
    assert places.limit == 6


def test_it_gets_more_again_once_there_is_room():
    places, limits = Places(16), []
    given(places)
    places.heard(load(4, waiting=16, kv_use=0.99))
    for _ in range(20):
        places.heard(load(min(places.limit, 16), kv_use=0.5))
        limits.append(places.limit)
    assert limits[:3] == [5, 6, 7] and limits[-1] == 16


def test_waiting_for_the_first_pass_over_the_prompts_is_no_want_of_room():
    """vLLM takes so many prompt tokens a step."""
    places = Places(16)
    given(places)
    places.heard(load(4, waiting=16, kv_use=0.3))
    assert places.limit == 16


def test_an_engine_that_has_nothing_to_do_always_gets_a_prompt():
    places = Places(1)
    places.heard(load(0, kv_use=1.0))
    assert given(places, answers=32) == 1
