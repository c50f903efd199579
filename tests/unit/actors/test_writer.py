"""The writer thread: everything that queues together is handled together, and every ticket is settled once."""

from __future__ import annotations

import threading
import time

import pytest

from raystream.actors.writer import Ticket, Writer
from raystream.errors import ActorLost, Overloaded, RequestTimeout


def _writer(handle: object, **options: object) -> tuple[Writer[int], list[BaseException]]:
    broken: list[BaseException] = []
    writer: Writer[int] = Writer("test", handle, broken=broken.append, **options)  # type: ignore[arg-type]
    return writer, broken


def test_what_queues_while_the_thread_works_is_one_round() -> None:
    rounds: list[list[int]] = []
    go = threading.Event()

    def handle(tickets: list[Ticket[int]]) -> None:
        go.wait(5)
        rounds.append([ticket.work for ticket in tickets])
        for ticket in tickets:
            ticket.answer(ticket.work * 2)

    writer, _ = _writer(handle)
    first = writer.submit(1)
    writer.start()
    later = [writer.submit(number) for number in (2, 3, 4)]
    go.set()
    assert first.wait(5000) == 2
    assert [ticket.wait(5000) for ticket in later] == [4, 6, 8]
    assert sum(len(r) for r in rounds) == 4
    assert len(rounds) <= 2
    writer.stop()


def test_stop_handles_what_has_queued_and_refuses_more() -> None:
    def handle(tickets: list[Ticket[int]]) -> None:
        for ticket in tickets:
            ticket.answer(ticket.work)

    writer, _ = _writer(handle)
    tickets = [writer.submit(number) for number in range(10)]
    writer.start()
    writer.stop()
    assert [ticket.wait(0) for ticket in tickets] == list(range(10))
    with pytest.raises(ActorLost):
        writer.submit(11)


def test_the_queue_is_bounded() -> None:
    writer, _ = _writer(lambda tickets: None, max_queued=2)
    writer.submit(1)
    writer.submit(2)
    with pytest.raises(Overloaded):
        writer.submit(3)


def test_a_call_that_is_not_answered_times_out() -> None:
    writer, _ = _writer(lambda tickets: None)
    with pytest.raises(RequestTimeout):
        writer.submit(1).wait(10)


def test_a_broken_handler_is_reported_and_later_calls_are_refused() -> None:
    reported = threading.Event()

    def handle(tickets: list[Ticket[int]]) -> None:
        raise OSError("the disk is gone")

    writer: Writer[int] = Writer("test", handle, broken=lambda error: reported.set())
    writer.start()
    writer.submit(1)
    assert reported.wait(5)
    with pytest.raises(ActorLost):
        writer.submit(2)


def test_only_the_first_outcome_of_a_ticket_counts() -> None:
    ticket: Ticket[int] = Ticket(1)
    ticket.answer("first")
    ticket.fail(OSError("later"))
    assert ticket.wait(0) == "first"


def test_one_owner_at_a_time_whoever_it_is() -> None:
    """Callers that work here and the writer's thread: no two at once, and nobody is forgotten."""
    inside = 0
    most = 0
    handled: list[int] = []

    def handle(tickets: list[Ticket[int]]) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        for ticket in tickets:
            handled.append(ticket.work)
            time.sleep(0.0002)
            ticket.answer(ticket.work)
        inside -= 1

    def idle_ms() -> float:
        nonlocal most
        most = max(most, inside + 1)  # it looks at the owner's state as well
        return 1.0

    writer: Writer[int] = Writer("test", handle, idle_ms=idle_ms, broken=lambda error: None)
    writer.start()
    answers: list[int] = []

    def call(first: int) -> None:
        answers.extend(writer.submit(number, here=number % 3 > 0).wait(5_000) for number in range(first, first + 200))

    threads = [threading.Thread(target=call, args=(1_000 * place,)) for place in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    writer.stop()
    assert sorted(answers) == sorted(handled) == sorted(1_000 * place + n for place in range(6) for n in range(200))
    assert most == 1, "two owners at once"


def test_an_idle_time_that_cannot_be_told_ends_the_writer() -> None:
    """Else the actor would live on, and answer nobody."""
    broken: list[BaseException] = []

    def idle_ms() -> float:
        raise KeyError("lost")

    writer: Writer[int] = Writer("test", lambda tickets: None, idle_ms=idle_ms, broken=broken.append)
    writer.start()
    writer._thread.join(5)
    assert isinstance(broken[0], KeyError)
    with pytest.raises(ActorLost):
        writer.submit(1)
