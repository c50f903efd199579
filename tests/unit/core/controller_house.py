"""An image, its controller, and brokers that register and are heard: what the controller's tests are written with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from raystream import messages as m
from raystream.core.controller import Controller
from raystream.core.metadata import MetadataImage, PartitionRecord
from raystream.core.records import Decision, Record, Removed

TOPIC_ID = "a" * 32
CLUSTER = "c" * 32


class House:
    """Brokers 0, 1 and so on are live. All that is decided is written to `log` and replayed. `racks` by broker id."""

    def __init__(self, brokers: int = 0, racks: Mapping[int, str] | None = None) -> None:
        self.image = MetadataImage()
        self.controller = Controller(self.image)
        self.log: list[Record | Removed] = []
        self.racks = racks or {}
        self.commit(self.controller.format(CLUSTER))
        for _ in range(brokers):
            self.join()

    def commit(self, decided: Decision | list[Record | Removed]) -> Any:
        """The decision's reply."""
        records = decided.records if isinstance(decided, Decision) else decided
        self.log += records
        for record in records:
            self.image.replay(record)
        return decided.reply if isinstance(decided, Decision) else None

    # Brokers --------------------------------------------------------------------------------------------------------

    def register(self, broker_id: int | None, **fields: Any) -> m.RegisterBrokerReply:
        number = max(self.image.brokers, default=-1) + 1 if broker_id is None else broker_id
        request: dict[str, Any] = {
            "directory_id": f"disk-{number}",
            "broker_id": broker_id,
            "cluster_id": None if broker_id is None else CLUSTER,
            "actor": f"broker-{number}",
            "node_id": f"node-{number}",
            "node": "host",
            "rack": self.racks.get(number, ""),
            "data_dir": f"/data/{number}",
            "pid": 1,
        }
        reply = self.commit(self.controller.register_broker(m.RegisterBrokerRequest(**(request | fields))))
        assert isinstance(reply, m.RegisterBrokerReply)
        return reply

    def join(self) -> int:
        """A new broker, which is heard."""
        broker_id = self.register(None).broker_id
        self.hear(broker_id)
        return broker_id

    def heartbeat(self, broker_id: int, **fields: Any) -> m.BrokerHeartbeatRequest:
        incarnation = self.image.brokers[broker_id].incarnation
        heard: dict[str, Any] = {
            "broker_id": broker_id,
            "incarnation": incarnation,
            "coordinator": f"coordinator-{broker_id}",
        }
        return m.BrokerHeartbeatRequest(**(heard | fields))

    def hear(self, broker_id: int, **fields: Any) -> None:
        self.commit(self.controller.broker_heard(self.heartbeat(broker_id, **fields)))

    def fence(self, *broker_ids: int) -> None:
        for broker_id in broker_ids:
            self.commit(self.controller.fence(broker_id))

    def drain(self, broker_id: int, **fields: Any) -> None:
        self.commit(self.controller.drain_broker(m.DrainBrokerRequest(broker_id=broker_id, **fields)))

    # Topics ---------------------------------------------------------------------------------------------------------

    def create(self, name: str, topic_id: str = TOPIC_ID, *, internal: bool = False, **fields: Any) -> None:
        request = m.CreateTopicRequest(**{"name": name, "partitions": 1, **fields})
        self.commit(self.controller.create_topic(request, topic_id=topic_id, raw_schema=b"raw", internal=internal))

    def alter(self, name: str = "t", **fields: Any) -> None:
        self.commit(self.controller.alter_topic(m.AlterTopicRequest(name=name, **fields)))

    def delete(self, name: str) -> None:
        self.commit(self.controller.delete_topic(m.DeleteTopicRequest(name=name)))

    # Replicas -------------------------------------------------------------------------------------------------------

    def partition(self, number: int = 0, topic_id: str = TOPIC_ID) -> PartitionRecord:
        return self.image.partition(topic_id, number)

    def partitions(self) -> list[PartitionRecord]:
        return [record for held in self.image.partitions.values() for record in held.values()]

    def change(
        self,
        broker_id: int,
        *,
        served: tuple[tuple[str, int, str, str], ...] = (),
        lost: tuple[tuple[str, int], ...] = (),
        incarnation: int | None = None,
    ) -> None:
        known = self.image.brokers[broker_id]
        request = m.ReplicasChangedRequest(
            broker_id=broker_id,
            incarnation=known.incarnation if incarnation is None else incarnation,
            served=tuple(m.ServedReplica(*replica) for replica in served),
            lost=lost,
        )
        self.commit(self.controller.replicas_changed(request))

    def serve(self, *brokers: int) -> None:
        """The brokers, or all that live, say that their replicas are open."""
        for broker in brokers or [b.broker_id for b in self.image.brokers.values() if not b.fenced]:
            held = [record for record in self.partitions() if broker in record.replicas]
            self.change(broker, served=tuple((r.topic_id, r.partition, f"actor-{broker}", "") for r in held))

    def set_isr(self, record: PartitionRecord, *isr: int) -> None:
        """The leader asks for it."""
        request = m.AlterIsrRequest(
            topic_id=record.topic_id,
            partition=record.partition,
            leader=record.leader,
            leader_epoch=record.leader_epoch,
            partition_epoch=record.partition_epoch,
            isr=tuple((broker, self.image.brokers[broker].incarnation) for broker in isr),
        )
        self.commit(self.controller.alter_isr(request))

    def catch_up(self) -> None:
        """Every live replica of a partition that is led comes into its ISR, and is open."""
        for record in self.partitions():
            live = [broker for broker in record.replicas if not self.image.brokers[broker].fenced]
            if record.leader in live and set(live) != set(record.isr):
                self.set_isr(record, *live)
        self.serve()

    def keep_up(self, rounds: int = 100) -> None:
        """Replicas catch up, then there is upkeep, until nothing is left to do."""
        for _ in range(rounds):
            self.catch_up()
            records = self.controller.upkeep()
            if not records:
                return
            self.commit(records)
        raise AssertionError("upkeep does not come to an end")
