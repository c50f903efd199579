"""The writer thread: everything that queues together is handled together, and every ticket is settled once."""

from __future__ import annotations

import threading

import pytest

from raystream.actors.writer import Ticket, Writer
from raystream.errors import Closed, Overloaded, RequestTimeout


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
    with pytest.raises(Closed):
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
    with pytest.raises(Closed):
        writer.submit(2)


def test_only_the_first_outcome_of_a_ticket_counts() -> None:
    ticket: Ticket[int] = Ticket(1)
    ticket.answer("first")
    ticket.fail(OSError("later"))
    assert ticket.wait(0) == "first"
