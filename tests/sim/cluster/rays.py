"""What `ray` is inside a simulated world: named actors on machines, calls over the network, late news of deaths.

Semantics are those that raystream relies on, and no better: a call is carried out at most once and may stay without an
answer; a dead process on a living node is noticed at once, a dead node only after a while; who cannot reach the head
waits for lookups without end.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Generator
from types import SimpleNamespace
from typing import Any, Final

from ray import exceptions

from tests.sim.cluster.kernel import Kernel, Process, Waiter
from tests.sim.cluster.machines import Machine, Network

REPEATABLE: Final = {"raft", "replicate", "append", "hello"}
"""Calls that the network may carry twice."""
NODE_NOTICED_S: Final = (4.0, 12.0)
BOOT_S: Final = (0.05, 0.6)


class Reference:
    """An ObjectRef: a result to come."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._context = contextvars.copy_context()
        self._done = False
        self._value: Any = None
        self._error: Exception | None = None
        self._waiters: list[Waiter] = []
        self._futures: list[Any] = []

    def settle(self, value: Any, error: Exception | None, delay_s: float) -> None:
        """What came of the call, in the caller's process."""
        self._kernel.call_later(delay_s, self._settle, value, error, context=self._context)

    def _settle(self, value: Any, error: Exception | None) -> None:
        if self._done:
            return
        self._done, self._value, self._error = True, value, error
        for waiter in self._waiters:
            waiter.wake()
        for future in self._futures:
            self._hand_over(future)

    def _hand_over(self, future: Any) -> None:
        if not future.done():
            if self._error is not None:
                future.set_exception(self._error)
            else:
                future.set_result(self._value)

    def __await__(self) -> Generator[Any, None, Any]:
        future = self._kernel.create_future()
        self._futures.append(future)
        if self._done:
            self._hand_over(future)
        return future.__await__()

    def get(self, timeout_s: float | None) -> Any:
        """Waits as a thread."""
        if not self._done:
            waiter = Waiter(self._kernel)
            self._waiters.append(waiter)
            waiter.wait(timeout_s)
        if not self._done:
            raise exceptions.GetTimeoutError("no answer")
        if self._error is not None:
            raise self._error
        return self._value


class Actor:
    """One actor through its restarts."""

    def __init__(
        self, ray: SimulatedRay, kind: type, args: tuple[Any, ...], name: str, machine: Machine, restarts: bool
    ) -> None:
        self._ray = ray
        self._kind = kind
        self._args = args
        self.name = name
        self.machine = machine
        self.node_id = machine.node_id
        self.restarts = restarts
        self.dead = False
        """As Ray knows; its process may have ended before."""
        self.instance: Any = None
        self.process: Process
        self._waiting: list[Callable[[], None]] = []
        self._launch()

    def _launch(self) -> None:
        kernel = self._ray.kernel
        self.instance = None
        self.process = kernel.spawn_process(f"{self.machine.name}/{self.name[:28]}", self.machine)
        with self.process.current():
            kernel.call_later(kernel.rng.uniform(*BOOT_S), kernel.thread, self._construct)
        with kernel.init.current():
            self.process.when_gone(self._gone)

    def _construct(self) -> None:
        self.instance = self._kind(*self._args)
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()

    def _gone(self) -> None:
        kernel = self._ray.kernel
        on_node = self.machine.up and self.machine.node_id == self.node_id
        if self.dead:
            return
        if not on_node:
            kernel.call_later(kernel.rng.uniform(*NODE_NOTICED_S), self.end)
        elif self.restarts:
            kernel.call_later(kernel.rng.uniform(0.1, 0.5), self._again)
        else:
            self.end()

    def _again(self) -> None:
        if not self.dead and self.machine.up and self.machine.node_id == self.node_id:
            self._launch()

    def end(self) -> None:
        """Nobody finds it any more."""
        self.dead = True
        self.process.kill()
        if self._ray.names.get(self.name) is self:
            del self._ray.names[self.name]

    # Calls ----------------------------------------------------------------------------------------------------------

    def call(self, method: str, args: tuple[Any, ...]) -> Reference:
        """From the calling process, over the network."""
        ray, kernel = self._ray, self._ray.kernel
        reference = Reference(kernel)
        source = kernel.process().machine
        if self.dead:
            reference.settle(None, exceptions.ActorDiedError(), 0.001)
            return reference
        if not ray.network.lost(source, self.machine):
            with kernel.init.current():
                kernel.call_later(
                    ray.network.delay_s(source, self.machine), self._arrive, method, args, source, reference
                )
                if method in REPEATABLE and source is not self.machine and kernel.rng.random() < ray.network.repeats:
                    kernel.call_later(kernel.rng.uniform(0.001, 1.5), self._arrive, method, args, source, reference)
        return reference

    def _arrive(self, method: str, args: tuple[Any, ...], source: Any, reference: Reference) -> None:
        if not self.machine.up or self.machine.node_id != self.node_id:
            return  # nobody says no
        if self.dead:
            self._answer(source, reference, None, exceptions.ActorDiedError())
        elif not self.process.alive or self.instance is None:
            self._waiting.append(lambda: self._begin(method, args, source, reference))
        else:
            self._begin(method, args, source, reference)

    def _begin(self, method: str, args: tuple[Any, ...], source: Any, reference: Reference) -> None:
        process, kernel = self.process, self._ray.kernel

        def carry_out() -> None:
            value: Any = None
            failure: Exception | None = None
            try:
                value = getattr(self.instance, method)(*args)
            except Exception as error:
                failure = error
            if process.alive:
                self._answer(source, reference, value, failure)

        def gone() -> None:
            if self.machine.up and self.machine.node_id == self.node_id:
                self._answer(source, reference, None, exceptions.ActorDiedError())

        with process.current():
            kernel.thread(carry_out)
        with kernel.init.current():
            process.when_gone(gone)

    def _answer(self, source: Any, reference: Reference, value: Any, failure: Exception | None) -> None:
        network = self._ray.network
        if not network.lost(self.machine, source):
            reference.settle(value, failure, network.delay_s(self.machine, source))


class _Unschedulable:
    """What is to run on a node that is gone never runs."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel

    def call(self, method: str, args: tuple[Any, ...]) -> Reference:
        reference = Reference(self._kernel)
        reference.settle(None, exceptions.ActorDiedError(), 0.001)
        return reference

    def end(self) -> None:
        pass


class Handle:
    """An actor handle."""

    def __init__(self, actor: Actor | _Unschedulable) -> None:
        self.actor = actor

    def __getattr__(self, name: str) -> _Method:
        if name.startswith("_"):
            raise AttributeError(name)
        return _Method(self.actor, name)


class _Method:
    def __init__(self, actor: Actor | _Unschedulable, name: str) -> None:
        self._actor = actor
        self._name = name

    def options(self, **_: Any) -> _Method:
        return self

    def remote(self, *args: Any) -> Reference:
        return self._actor.call(self._name, args)


class SimulatedRay:
    """The module `ray`, as far as raystream uses it."""

    exceptions = exceptions

    def __init__(self, kernel: Kernel, network: Network) -> None:
        self.kernel = kernel
        self.network = network
        self.machines: list[Machine] = []
        self.names: dict[str, Actor] = {}

    def is_initialized(self) -> bool:
        return True

    def get_runtime_context(self) -> Any:
        machine = self.kernel.process().machine
        node_id = "driver" if machine is None else machine.node_id
        return SimpleNamespace(get_node_id=lambda: node_id, gcs_address="head:6379")

    def _ask_head(self) -> None:
        """The head may be out of reach: then this waits, on a thread, until it is not."""
        head = next(machine for machine in self.machines if machine.head)
        here = self.kernel.process().machine
        while self.kernel.in_thread():
            self.kernel.sleep(self.kernel.rng.uniform(0.0005, 0.003))
            if self.network.reaches(here, head) and self.network.reaches(head, here):
                return
            self.kernel.sleep(0.1)

    def nodes(self) -> list[dict[str, Any]]:
        self._ask_head()
        return [
            {
                "NodeID": machine.node_id,
                "Alive": True,
                "Resources": {"node:__internal_head__": 1.0} if machine.head else {},
                "Labels": {"raystream.io/rack": machine.rack} if machine.rack else {},
            }
            for machine in self.machines
            if machine.node_id and (machine.up or self.kernel.now_s < machine.noticed_s)
        ]

    def get(self, reference: Reference, timeout: float | None = None) -> Any:
        return reference.get(timeout)

    def get_actor(self, name: str, namespace: str) -> Handle:
        self._ask_head()
        actor = self.names.get(name)
        if actor is None or actor.dead:
            raise ValueError(f"no actor {name}")
        return Handle(actor)

    def kill(self, handle: Handle, no_restart: bool = True) -> None:
        handle.actor.end()

    def remote(self, **options: Any) -> Callable[[type], Any]:
        def made(kind: type) -> Any:
            return SimpleNamespace(remote=lambda *args: self._start(kind, args, options))

        return made

    def _start(self, kind: type, args: tuple[Any, ...], options: dict[str, Any]) -> Handle:
        self._ask_head()
        name = options["name"]
        known = self.names.get(name)
        if known is not None and not known.dead:
            return Handle(known)
        node_id = options["scheduling_strategy"].node_id
        machine = next((machine for machine in self.machines if machine.node_id == node_id and machine.up), None)
        if machine is None:
            return Handle(_Unschedulable(self.kernel))
        actor = self.names[name] = Actor(self, kind, args, name, machine, restarts=options["max_restarts"] != 0)
        return Handle(actor)

    def node_died(self, machine: Machine) -> None:
        """Its Ray node is a memory from now on, which Ray does not know yet."""
        machine.noticed_s = self.kernel.now_s + self.kernel.rng.uniform(*NODE_NOTICED_S)
