//! The metrics of the daemon, in one place, named as the documentation names them.

use std::{collections::BTreeMap, sync::atomic::AtomicU64};

use parking_lot::{Mutex, MutexGuard};
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use serde::Serialize;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

use crate::{
    logging,
    names::{ActorName, SinkName},
    position::Partition,
};

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ReasonLabel {
    pub reason: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct ActorLabel {
    pub actor: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct PartitionLabel {
    pub sink: &'static str,
    pub topic: String,
    pub partition: i32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct StatusLabel {
    pub status: u16,
}

/// Records between a sink's durable position and the end of the log, for one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Lag {
    pub sink: SinkName,
    pub topic: String,
    pub partition: Partition,
    pub records: u64,
}

pub type GaugeF64 = Gauge<f64, AtomicU64>;

/// Every metric. Counters end in `_total` when scraped. The fields are public: whoever does the thing counts it.
pub struct Metrics {
    registry: Registry,
    /// What `lag_records` says, readable: a family of gauges cannot be listed.
    lags: Mutex<BTreeMap<(SinkName, String, Partition), u64>>,
    /// Events that were answered with 2xx.
    pub events_accepted: Counter,
    /// Events acknowledged by the queue.
    pub events_produced: Counter,
    /// Records read from the log, by each sink.
    pub events_consumed: Family<SinkLabel, Counter>,
    /// Records in confirmed archive objects.
    pub events_archived: Counter,
    /// Records counted durably.
    pub events_aggregated: Counter,
    pub events_dead_lettered: Counter,
    /// Events refused, by the code that the client sees.
    pub events_rejected: Family<ReasonLabel, Counter>,
    /// Events of requests answered 503 that were written to the log all the same.
    pub events_produced_unanswered: Counter,
    /// Events that Kafka acknowledged after they had waited in the buffer; they count as produced, too.
    pub events_forwarded: Counter,
    /// Events that wait in the buffer.
    pub buffer_records: Gauge,
    /// Records that retention removed before they were read.
    pub records_lost: Family<PartitionLabel, Counter>,
    pub requests: Family<StatusLabel, Counter>,
    pub lag_records: Family<PartitionLabel, Gauge>,
    pub queue_depth: Family<ActorLabel, Gauge>,
    pub actor_restarts: Family<ActorLabel, Counter>,
    pub disk_used_ratio: GaugeF64,
    pub spool_bytes: Gauge,
    pub in_flight_bytes: Gauge,
    resident_memory_bytes: Gauge,
    pub upload_retries: Counter,
    pub flush_retries: Counter,
    pub request_duration: Histogram,
    pub flush_duration: Histogram,
    pub upload_duration: Histogram,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct SinkLabel {
    pub sink: &'static str,
}

/// Half a millisecond to about a minute.
fn durations() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut metrics = Self {
            registry: Registry::with_prefix("ingestd"),
            lags: Mutex::default(),
            events_accepted: Counter::default(),
            events_produced: Counter::default(),
            events_consumed: Family::default(),
            events_archived: Counter::default(),
            events_aggregated: Counter::default(),
            events_dead_lettered: Counter::default(),
            events_rejected: Family::default(),
            events_produced_unanswered: Counter::default(),
            events_forwarded: Counter::default(),
            buffer_records: Gauge::default(),
            records_lost: Family::default(),
            requests: Family::default(),
            lag_records: Family::default(),
            queue_depth: Family::default(),
            actor_restarts: Family::default(),
            disk_used_ratio: GaugeF64::default(),
            spool_bytes: Gauge::default(),
            in_flight_bytes: Gauge::default(),
            resident_memory_bytes: Gauge::default(),
            upload_retries: Counter::default(),
            flush_retries: Counter::default(),
            request_duration: durations(),
            flush_duration: durations(),
            upload_duration: durations(),
        };
        metrics.register();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let r = &mut self.registry;
        r.register("events_accepted", "Events answered with 2xx", self.events_accepted.clone());
        r.register("events_produced", "Events acknowledged by the queue", self.events_produced.clone());
        r.register("events_consumed", "Records read from the log, by sink", self.events_consumed.clone());
        r.register("events_archived", "Records in confirmed archive objects", self.events_archived.clone());
        r.register("events_aggregated", "Records counted durably", self.events_aggregated.clone());
        r.register(
            "events_dead_lettered",
            "Records written to the dead letter queue",
            self.events_dead_lettered.clone(),
        );
        r.register("events_rejected", "Events refused, by code", self.events_rejected.clone());
        r.register(
            "events_produced_unanswered",
            "Events in the log whose request was not answered with 2xx",
            self.events_produced_unanswered.clone(),
        );
        r.register(
            "events_forwarded",
            "Events that Kafka acknowledged after they had waited in the buffer",
            self.events_forwarded.clone(),
        );
        r.register("buffer_records", "Events that wait in the buffer for Kafka", self.buffer_records.clone());
        r.register("records_lost", "Records that retention removed before they were read", self.records_lost.clone());
        r.register("requests", "Requests to the ingest listener, by status", self.requests.clone());
        r.register(
            "lag_records",
            "Records between the sink's durable position and the log's end",
            self.lag_records.clone(),
        );
        r.register(
            "queue_depth",
            "Requests, batches or segments that were handed to an actor and are not done yet",
            self.queue_depth.clone(),
        );
        r.register("actor_restarts", "Restarts by the guardian", self.actor_restarts.clone());
        r.register(
            "disk_used_ratio",
            "Used share of the file system of data.dir, as df prints it",
            self.disk_used_ratio.clone(),
        );
        r.register("spool_bytes", "Bytes in sealed segments on disk", self.spool_bytes.clone());
        r.register(
            "in_flight_bytes",
            "Bytes of requests being handled, with what their events and answers cost",
            self.in_flight_bytes.clone(),
        );
        r.register("resident_memory_bytes", "Resident memory of the process", self.resident_memory_bytes.clone());
        r.register(
            "log_lines_dropped",
            "Lines of the log that were dropped, because whoever reads it stood still",
            logging::dropped(),
        );
        r.register("upload_retries", "Uploads tried again", self.upload_retries.clone());
        r.register("flush_retries", "Aggregate flushes tried again", self.flush_retries.clone());
        r.register(
            "request_duration_seconds",
            "Time from a request's head to its answer",
            self.request_duration.clone(),
        );
        r.register("flush_duration_seconds", "Time of an aggregate flush", self.flush_duration.clone());
        r.register("upload_duration_seconds", "Time of one object's upload", self.upload_duration.clone());
    }

    /// The gauge of one actor's queue.
    pub fn depth(&self, actor: ActorName) -> Gauge {
        self.queue_depth.get_or_create_owned(&ActorLabel { actor: actor.as_str() })
    }

    pub fn actor_restarted(&self, actor: ActorName) {
        self.actor_restarts.get_or_create(&ActorLabel { actor: actor.as_str() }).inc();
    }

    /// The lag gauge of one partition; removed with [`Self::forget_lag`] when the partition is not ours any more.
    pub fn set_lag(&self, sink: SinkName, topic: &str, partition: Partition, records: u64) {
        self.lags_by_partition().insert((sink, topic.to_owned(), partition), records);
        let lag = i64::try_from(records).unwrap_or(i64::MAX);
        self.lag_records.get_or_create(&partition_label(sink, topic, partition)).set(lag);
    }

    pub fn forget_lag(&self, sink: SinkName, topic: &str, partition: Partition) {
        self.lags_by_partition().remove(&(sink, topic.to_owned(), partition));
        self.lag_records.remove(&partition_label(sink, topic, partition));
    }

    /// The lag of every partition that this process holds, by sink, topic and partition.
    pub fn lags(&self) -> Vec<Lag> {
        let lags = self.lags_by_partition();
        lags.iter()
            .map(|((sink, topic, partition), records)| Lag {
                sink: *sink,
                topic: topic.clone(),
                partition: *partition,
                records: *records,
            })
            .collect()
    }

    fn lags_by_partition(&self) -> MutexGuard<'_, BTreeMap<(SinkName, String, Partition), u64>> {
        self.lags.lock()
    }

    pub fn lost(&self, sink: SinkName, topic: &str, partition: Partition, records: u64) {
        self.records_lost.get_or_create(&partition_label(sink, topic, partition)).inc_by(records);
    }

    /// Of the process, in bytes, as it is now; where the system does not tell, as it was told last.
    pub fn resident_memory(&self) -> i64 {
        if let Some(bytes) = resident_memory() {
            self.resident_memory_bytes.set(i64::try_from(bytes).unwrap_or(i64::MAX));
        }
        self.resident_memory_bytes.get()
    }

    /// The OpenMetrics text that `/metrics` answers.
    pub fn encode(&self) -> String {
        self.resident_memory();
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

fn resident_memory() -> Option<u64> {
    let own = sysinfo::get_current_pid().ok()?;
    let memory_only = ProcessRefreshKind::nothing().with_memory().without_tasks();
    let mut system = System::new().ok()?;
    system.refresh_processes_specifics(ProcessesToUpdate::Some(&[own]), false, memory_only);
    system.process(own).map(sysinfo::Process::memory)
}

fn partition_label(sink: SinkName, topic: &str, partition: Partition) -> PartitionLabel {
    PartitionLabel { sink: sink.as_str(), topic: topic.to_owned(), partition: partition.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_the_memory_of_now() {
        let text = Metrics::default().encode();
        let line = text.lines().find_map(|line| line.strip_prefix("ingestd_resident_memory_bytes ")).unwrap();
        assert!(line.parse::<u64>().unwrap() > 1024 * 1024, "{line}");
    }
}
