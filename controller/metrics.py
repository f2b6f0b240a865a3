"""Prometheus metrics, collected from the runtime's state at the moment of asking. No addresses as labels."""

from __future__ import annotations

import time
from collections.abc import Iterator

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from controller.runtime import Runtime

CONTENT_TYPE = CONTENT_TYPE_LATEST


class _State(Collector):
    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def collect(self) -> Iterator[Metric]:
        conductor, runtime = self._runtime.conductor, self._runtime
        up = GaugeMetricFamily("takeover_server_up", "1 when the server is up", labels=["server"])
        count = GaugeMetricFamily("takeover_connections", "Connections with a checkpoint", labels=["server"])
        age = GaugeMetricFamily("takeover_heartbeat_age_seconds", "Since the last sign of life", labels=["server"])
        delay = GaugeMetricFamily(
            "takeover_agent_loop_lag_seconds", "Longest delay of the agent's loop since last asked", labels=["server"]
        )
        now = time.monotonic()
        for name, server in conductor.servers.items():
            up.add_metric([name], server.up)
            count.add_metric([name], conductor.collector.count(name))
            silent = conductor.detector.age(name, now)
            if silent is not None:
                age.add_metric([name], silent)
            delay.add_metric([name], server.lag_most)
            server.lag_most = 0.0
        yield from (up, count, age, delay)
        yield GaugeMetricFamily("takeover_bundles", "Bundles of connections", len(conductor.collector.bundles()))
        young = len(conductor.witness)
        yield GaugeMetricFamily("takeover_young_connections", "Data connections without a checkpoint yet", young)
        causes = CounterMetricFamily("takeover_takeovers", "Takeovers by cause", labels=["cause"])
        fates = CounterMetricFamily("takeover_moved_connections", "Connections by fate", labels=["fate"])
        for label, number in conductor.history.causes.items():
            causes.add_metric([label], number)
        for label, number in conductor.history.fates.items():
            fates.add_metric([label], number)
        yield from (causes, fates)
        yield CounterMetricFamily("takeover_checkpoints", "Checkpoints taken in", conductor.collector.taken)
        yield CounterMetricFamily("takeover_checkpoint_bytes", "Their bytes", conductor.collector.taken_bytes)
        refused = CounterMetricFamily("takeover_checkpoints_refused", "Refused, by field", labels=["field"])
        for field, number in conductor.collector.refused.items():
            refused.add_metric([field], number)
        yield refused
        gate = CounterMetricFamily("takeover_gate_closes", "Closes without the mark, by fate", labels=["fate"])
        for label, number in conductor.gate.counts.items():
            gate.add_metric([label], number)
        yield gate
        yield CounterMetricFamily("takeover_late_packets", "Packets of fenced servers dropped", runtime.late_packets)
        yield CounterMetricFamily("takeover_agents_refused", "Agents turned away", conductor.refused_hellos)
        yield GaugeMetricFamily("takeover_epoch", "The present epoch", conductor.epoch)
        lag, runtime.lag_seconds = runtime.lag_seconds, 0.0
        yield GaugeMetricFamily("takeover_loop_lag_seconds", "Longest delay of the event loop since last asked", lag)
        sent = CounterMetricFamily("takeover_switch_messages", "Sent to the switch, by name", labels=["message"])
        for label, number in runtime.switch_messages.items():
            sent.add_metric([label], number)
        yield sent
        errors = CounterMetricFamily("takeover_errors", "Errors by kind", labels=["kind"])
        for label, number in {**runtime.errors, "handshake": conductor.witness.malformed}.items():
            errors.add_metric([label], number)
        yield errors


def render(runtime: Runtime) -> bytes:
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_State(runtime))
    return generate_latest(registry)
