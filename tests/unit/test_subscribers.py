"""Subscribers are told, in their order, until they end it; and may come and go while they are told."""

from __future__ import annotations

from istio_auth.subscribers import Subscribers


def test_all_are_told_in_their_order_until_they_end_it() -> None:
    told: list[str] = []
    subscribers = Subscribers()
    subscribers.add(lambda: told.append("a"))
    end = subscribers.add(lambda: told.append("b"))
    subscribers.tell()
    end()
    end()
    subscribers.tell()
    assert told == ["a", "b", "a"]


def test_the_same_function_twice_is_two_subscribers() -> None:
    told: list[int] = []
    subscribers = Subscribers()

    def changed() -> None:
        told.append(1)

    end = subscribers.add(changed)
    subscribers.add(changed)
    end()
    subscribers.tell()
    assert told == [1]


def test_one_that_is_told_may_end_itself_and_bring_others() -> None:
    told: list[str] = []
    subscribers = Subscribers()

    def once() -> None:
        told.append("once")
        end()
        subscribers.add(lambda: told.append("later"))

    end = subscribers.add(once)
    subscribers.tell()
    assert told == ["once"]
    subscribers.tell()
    assert told == ["once", "later"]
