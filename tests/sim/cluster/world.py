"""A world: three or more machines that run the product, clients of it, and whatever befalls them."""

from __future__ import annotations

import gc
import logging
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raystream import messages as m
from raystream.actors import session as sessions
from raystream.actors.handles import RayDirectory
from raystream.client.routing import Routing
from raystream.clock import SystemClock
from raystream.cluster import Cluster
from raystream.testing.operations import Operation
from tests.sim.cluster.kernel import Kernel, Process
from tests.sim.cluster.machines import Machine, Network
from tests.sim.cluster.patches import SimulatedLoop, in_place
from tests.sim.cluster.rays import Actor, SimulatedRay

NAMESPACE = "raystream"
START_S = 60.0


class World:
    """The machines of one run, the first of which is Ray's head."""

    def __init__(self, seed: int, directory: Path, machines: int, *, verbose: bool = False) -> None:
        self.seed = seed
        self.verbose = verbose
        self.kernel = Kernel(seed)
        self.rng = self.kernel.rng
        self.network = Network(self.kernel)
        self.ray = SimulatedRay(self.kernel, self.network)
        self.history: list[Operation] = []
        for number in range(machines):
            self.add_machine(directory / f"m{number}")
        self.machines[0].head = True
        self.spec: m.BrokerSpec
        self._cluster_id: str

    @property
    def machines(self) -> list[Machine]:
        """All of them, up or not."""
        return self.ray.machines

    def add_machine(self, directory: Path) -> Machine:
        """One more machine, which joins Ray."""
        machine = Machine(self.kernel, directory.name, directory)
        directory.mkdir()
        self.machines.append(machine)
        machine.start()
        return machine

    # For whoever reads a run ----------------------------------------------------------------------------------------

    def note(self, text: str) -> None:
        """A line, where somebody reads."""
        if self.verbose and text:
            print(f"{self.kernel.now_s:10.4f}  {self.kernel.process().name:32}  {text}", flush=True)

    def note_exception(self, *args: Any) -> None:
        """What the product writes on its standard error."""
        if self.verbose:
            self.note(traceback.format_exc() if not args else "".join(traceback.format_exception(args[0])))

    @contextmanager
    def logging(self) -> Iterator[None]:
        """The product's log lines are notes."""
        logger = logging.getLogger("raystream")
        before = (logger.level, logger.propagate, list(logger.handlers))
        world = self

        class Notes(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                world.note(f"{record.levelname[0]} {record.getMessage()}")
                if record.exc_info and world.verbose:
                    world.note("".join(traceback.format_exception(*record.exc_info)))
                if record.exc_info and isinstance(record.exc_info[1], Exception) and record.levelno >= logging.ERROR:
                    world.kernel.fail(record.exc_info[1])  # nobody expected it

        logger.handlers[:] = [Notes()]
        logger.propagate = False
        logger.setLevel(logging.DEBUG if self.verbose else logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(before[0])
            logger.propagate = before[1]
            logger.handlers[:] = before[2]

    # The product ----------------------------------------------------------------------------------------------------

    def connect(self) -> Cluster:
        """A client's connection, as `raystream.connect` makes it inside a Ray cluster."""
        head = next(machine for machine in self.machines if machine.head)
        self.spec = m.BrokerSpec(
            namespace=NAMESPACE, root="/data", cluster=head.node_id, address="head:6379", embedded=False
        )
        self._cluster_id = sessions._ready(NAMESPACE, self.spec).cluster_id
        return self.join()

    def join(self) -> Cluster:
        """A connection to a cluster that is up."""
        directory = RayDirectory(NAMESPACE)
        session = sessions.Session(
            namespace=NAMESPACE,
            address="head:6379",
            data_dir="/data",
            cluster_id=self._cluster_id,
            directory=directory,
            loop=SimulatedLoop(self.kernel),
            routing=Routing(directory, SystemClock()),
            owns_ray=False,
            joined_ray=False,
        )
        return Cluster(lambda: session)

    def actors(self, kind: str) -> list[Actor]:
        """The living actors of a class, by its name."""
        found = [actor for actor in self.ray.names.values() if actor._kind.__name__ == kind]
        return [actor for actor in found if actor.process.alive and actor.instance is not None]

    def brokers(self) -> list[Any]:
        """The living brokers, as objects."""
        return [actor.instance for actor in self.actors("BrokerActor")]

    def image(self) -> Any:
        """The metadata of the broker that knows most; None while none is up."""
        images = [broker._metadata._image for broker in self.brokers()]
        return max(images, key=lambda image: image.version, default=None)

    def is_healthy(self) -> bool:
        """Whether there is a controller, and every partition has all its replicas in sync, open and led."""
        controller = next((broker for broker in self.brokers() if _leads(broker)), None)
        if controller is None:
            return False
        image = controller._metadata._image
        live = {broker.broker_id for broker in image.brokers.values() if not broker.fenced}
        voters = {voter.id for voter in controller._node.voters}
        if len(voters) < 3 or not voters <= live:
            return False
        open_now = {
            (replica.spec.topic_id, replica.spec.partition, replica.spec.broker_id) for _, replica in self.replicas()
        }
        return all(
            record.leader >= 0
            and set(record.isr) == set(record.replicas)
            and not record.adding
            and not record.removing
            and live >= set(record.replicas)
            and all((record.topic_id, record.partition, broker) in open_now for broker in record.replicas)
            for held in image.partitions.values()
            for record in held.values()
        )

    def replicas(self) -> Iterator[tuple[Process, Any]]:
        """Every open replica with the process that it lives in."""
        for actor in self.actors("PartitionActor"):
            for replica in list(actor.instance._replicas.values()):
                yield actor.process, replica


def _leads(broker: Any) -> bool:
    return broker._node is not None and broker._started.is_set() and broker._controlling.leads


def run_in_world(seed: int, machines: int, main: Callable[[World], None], *, verbose: bool = False) -> World:
    """Runs `main` as the first process of a world. Raises what goes wrong in it.

    Python's cyclic collector stays off afterwards: to go through a world costs as much as a fifth of its run, and a
    process that runs one world alone ends without.
    """
    gc.collect()  # what is left of earlier worlds: its `finally` blocks are not to run in this one
    gc.freeze()  # and what is left now stays
    gc.disable()
    with tempfile.TemporaryDirectory(prefix="raystream-sim-") as directory:
        world = World(seed, Path(directory), machines, verbose=verbose)
        with in_place(world), world.logging():
            world.kernel.run(lambda: main(world))
        return world
