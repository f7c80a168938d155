//! The metrics of the daemon, in one place, named as the documentation names them.

mod rates;

use std::{collections::BTreeMap, sync::atomic::AtomicU64, time::Instant};

use parking_lot::Mutex;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};
use serde::Serialize;
use sysinfo::{ProcessRefreshKind, ProcessesToUpdate, System};

pub use self::rates::Rates;
use self::rates::{Counts, Looks};
use crate::{
    logging,
    names::{ActorName, SinkName},
    position::Partition,
};

macro_rules! labels {
    ($($name:ident { $($label:ident: $type:ty),* })*) => {
        $(
            #[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
            pub struct $name {
                $(pub $label: $type),*
            }
        )*
    };
}

labels! {
    ReasonLabel { reason: &'static str }
    ActorLabel { actor: &'static str }
    SinkLabel { sink: &'static str }
    ListenerLabel { listener: &'static str }
    HandshakeLabel { listener: &'static str, reason: &'static str }
    StatusLabel { status: u16 }
    KeyLabel { key: String }
    AggregateLabel { aggregate: String }
    ByLabel { by: &'static str }
    PartitionLabel { sink: &'static str, topic: String, partition: i32 }
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

/// Each metric, declared once: its name is the field's (with a unit behind it, where there is one), and its help says what
/// it counts.
macro_rules! metrics {
    ($($(#[$doc:meta])* $visible:vis $field:ident $(+ $unit:literal)?: $type:ty $(= $new:expr)?, $help:literal;)*) => {
        /// Every metric. Counters end in `_total` when scraped. The fields are public: what does the thing counts it.
        pub struct Metrics {
            registry: Registry,
            /// What `lag_records` says, readable: a family of gauges cannot be listed.
            lags: Mutex<BTreeMap<(SinkName, String, Partition), u64>>,
            /// What the counters of events said in the last seconds.
            looks: Mutex<Looks>,
            $(#[doc = $help] $(#[$doc])* $visible $field: $type,)*
        }

        impl Default for Metrics {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("ingestd");
                $(
                    let $field: $type = metrics!(@new $($new)?);
                    registry.register(concat!(stringify!($field) $(, $unit)?), $help, $field.clone());
                )*
                Self { registry, lags: Mutex::default(), looks: Mutex::default(), $($field,)* }
            }
        }
    };
    (@new) => { Default::default() };
    (@new $new:expr) => { $new };
}

metrics! {
    pub events_accepted: Counter, "Events answered with 2xx";
    /// As many as keys that were configured while the process runs.
    pub events_accepted_by_key: Family<KeyLabel, Counter>, "Events answered with 2xx, by the name of the key that they came with";
    pub auth_refusals: Family<ReasonLabel, Counter>, "Requests refused for their key (http.auth), by reason";
    pub admin_auth_refusals: Family<ReasonLabel, Counter>, "Requests to the admin listener refused for their key (admin.auth), or for the page that sent them, by reason";
    pub connections_refused: Family<ReasonLabel, Counter>, "Connections to the ingest listener closed at once, by reason";
    pub tls_handshakes: Family<ListenerLabel, Counter>, "TLS handshakes that were completed, by listener";
    pub tls_handshakes_failed: Family<HandshakeLabel, Counter>, "TLS handshakes that came to nothing, by listener and reason";
    pub tls_certificate_not_after_timestamp + "_seconds": Family<ListenerLabel, Gauge>,
        "When the certificate, or the first of its chain, ends, in seconds since 1970, by listener";
    pub rate_limited: Family<ByLabel, Counter>, "Requests refused for a rate (http.rate, rate in http.auth.keys), by whose it is";
    /// Of a request that is refused before its body is read it is one.
    pub rate_limited_events: Family<ByLabel, Counter>, "Events of requests refused for a rate, as far as they were counted";
    pub rate_tracked_addresses: Gauge, "Addresses that have used some of http.rate, and are not full again";
    pub proxy_refusals: Family<ReasonLabel, Counter>, "Connections refused for a PROXY protocol header, by reason";
    pub signature_refusals: Family<ReasonLabel, Counter>, "Requests refused for their signature ([[http.source]]), by reason";
    pub events_produced: Counter, "Events acknowledged by the queue";
    pub events_consumed: Family<SinkLabel, Counter>, "Records read from the log, by sink";
    pub events_archived: Counter, "Records in confirmed archive objects";
    pub events_aggregated: Counter, "Records counted durably";
    pub events_by_receipt: Family<ReasonLabel, Counter>,
        "Records counted by the time of their receipt, since their own is not believed, by reason";
    pub events_expired: Family<AggregateLabel, Counter>, "Records not counted, since their windows are kept no longer, by aggregate";
    pub events_in_other: Family<AggregateLabel, Counter>,
        "Records counted in the group of all beyond max_groups, by aggregate";
    rebuild_partitions: Family<AggregateLabel, Gauge>,
        "Partitions that the rebuild under way has not caught up with, by aggregate; nothing where there is none";
    rebuild_records: Family<AggregateLabel, Gauge>,
        "Records that the rebuild under way has counted from the archive, by aggregate; nothing where there is none";
    pub events_dead_lettered: Counter, "Records written to the dead letter queue";
    pub events_rejected: Family<ReasonLabel, Counter>, "Events refused, by code";
    pub events_warned: Family<ReasonLabel, Counter>, "Accepted events that were named in their answer's warnings, by code";
    pub events_quarantined: Family<ReasonLabel, Counter>, "Wrong events kept as dead letters by the ingestor, by code";
    pub events_produced_unanswered: Counter, "Events in the log whose request was not answered with 2xx";
    /// They count as produced, too.
    pub events_forwarded: Counter, "Events that Kafka acknowledged after they had waited in the buffer";
    pub buffer_records: Gauge, "Events that wait in the buffer for Kafka";
    pub records_lost: Family<PartitionLabel, Counter>, "Records that retention removed before they were read";
    pub requests: Family<StatusLabel, Counter>, "Requests to the ingest listener, by status";
    pub lag_records: Family<PartitionLabel, Gauge>, "Records between the sink's durable position and the log's end";
    pub shared_partitions: Family<SinkLabel, Gauge>,
        "Partitions of the sink that the other sink's consumer fetches for both";
    pub queue_depth: Family<ActorLabel, Gauge>,
        "Requests, batches or segments that were handed to an actor and are not done yet";
    pub actor_restarts: Family<ActorLabel, Counter>, "Restarts by the guardian";
    pub disk_used_ratio: GaugeF64, "Used share of the file system of data.dir, as df prints it";
    pub spool_bytes: Gauge, "Bytes in sealed segments on disk";
    pub in_flight_bytes: Gauge, "Bytes of requests being handled, with what their events and answers cost";
    pub in_flight_large_bytes: Gauge, "Of ingestd_in_flight_bytes, what requests of more than 1/1024 of http.max_in_flight hold";
    resident_memory_bytes: Gauge, "Resident memory of the process";
    pub log_lines_dropped: Counter = logging::dropped(),
        "Lines of the log that were dropped, because whoever reads it stood still";
    pub upload_retries: Counter, "Uploads tried again";
    pub flush_retries: Counter, "Aggregate flushes tried again";
    pub request_duration + "_seconds": Histogram = durations(), "Time from a request's head to its answer";
    pub flush_duration + "_seconds": Histogram = durations(), "Time of an aggregate flush";
    pub upload_duration + "_seconds": Histogram = durations(), "Time of one object's upload";
}

/// Half a millisecond to about a minute.
fn durations() -> Histogram {
    Histogram::new([0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0])
}

impl Metrics {
    /// The gauge of one actor's queue.
    pub fn depth(&self, actor: ActorName) -> Gauge {
        self.queue_depth.get_or_create_owned(&ActorLabel { actor: actor.as_str() })
    }

    /// How far the rebuild of an aggregate is: partitions that it has not caught up with, and records counted from the archive; `None`
    /// where there is none.
    pub fn show_rebuild(&self, aggregate: &str, reached: Option<(usize, u64)>) {
        let label = AggregateLabel { aggregate: aggregate.to_owned() };
        let Some((partitions, records)) = reached else {
            self.rebuild_partitions.remove(&label);
            self.rebuild_records.remove(&label);
            return;
        };
        self.rebuild_partitions.get_or_create(&label).set(i64::try_from(partitions).unwrap_or(i64::MAX));
        self.rebuild_records.get_or_create(&label).set(i64::try_from(records).unwrap_or(i64::MAX));
    }

    /// The gauge of the partitions that another source reads for this sink.
    pub fn attached(&self, sink: SinkName) -> Gauge {
        self.shared_partitions.get_or_create_owned(&SinkLabel { sink: sink.as_str() })
    }

    pub fn actor_restarted(&self, actor: ActorName) {
        self.actor_restarts.get_or_create(&ActorLabel { actor: actor.as_str() }).inc();
    }

    /// The lag gauge of one partition; removed with [`Self::forget_lag`] when the partition is not ours any more.
    pub fn set_lag(&self, sink: SinkName, topic: &str, partition: Partition, records: u64) {
        self.lags.lock().insert((sink, topic.to_owned(), partition), records);
        let lag = i64::try_from(records).unwrap_or(i64::MAX);
        self.lag_records.get_or_create(&partition_label(sink, topic, partition)).set(lag);
    }

    pub fn forget_lag(&self, sink: SinkName, topic: &str, partition: Partition) {
        self.lags.lock().remove(&(sink, topic.to_owned(), partition));
        self.lag_records.remove(&partition_label(sink, topic, partition));
    }

    /// The lag of every partition that this process holds, by sink, topic and partition.
    pub fn lags(&self) -> Vec<Lag> {
        let lag = |((sink, topic, partition), records): (&(SinkName, String, Partition), &u64)| Lag {
            sink: *sink,
            topic: topic.clone(),
            partition: *partition,
            records: *records,
        };
        self.lags.lock().iter().map(lag).collect()
    }

    pub fn lost(&self, sink: SinkName, topic: &str, partition: Partition, records: u64) {
        self.records_lost.get_or_create(&partition_label(sink, topic, partition)).inc_by(records);
    }

    /// Notes what the counters of events say, for [`Self::rates`]. To be called once a second.
    pub fn look(&self) {
        let counts = Counts {
            accepted: self.events_accepted.get(),
            produced: self.events_produced.get(),
            archived: self.events_archived.get(),
            aggregated: self.events_aggregated.get(),
        };
        self.looks.lock().note(Instant::now(), counts);
    }

    /// Events a second over the last ten seconds; `None` in the first one.
    pub fn rates(&self) -> Option<Rates> {
        self.looks.lock().rates()
    }

    /// The memory of the process in bytes, as it is now; where the system does not say, as it said last.
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
