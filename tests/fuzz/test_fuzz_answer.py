"""The fuzz target itself works: it passes its seeds and their neighbours, and its search reaches the core."""

from __future__ import annotations

import random

from tests.fuzz.fuzz_answer import SEEDS, check, mutate, search


def test_seeds_and_their_neighbours_pass() -> None:
    for data in SEEDS:
        check(data)
    rng = random.Random(7)
    for _ in range(5000):
        check(mutate(rng.choice(SEEDS), rng, SEEDS))


def test_the_search_reaches_what_the_seeds_do_not() -> None:
    corpus = list(SEEDS)
    tried, lines = search(1.0, corpus)
    assert tried > 100
    assert lines > 300
    assert len(corpus) > len(SEEDS)
