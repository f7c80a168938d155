//! `GET /v1/live`: what the daemon does, as it does it, for the dashboard (server-sent events).
//!
//! Each second one event, whose data is one line of JSON: what `GET /status` has, and beside it
//!
//! | | |
//! | --- | --- |
//! | `time` | of the daemon's clock, in milliseconds since 1970 |
//! | `counters` | `rejected` and `quarantined` by code, `consumed` by sink, `restarts` by actor, `answers` by status: each since the process started |
//! | `latency` | of requests from head to answer, as Prometheus has it: the number of those that took at most so many seconds, for each bound; the last is all |
//!
//! Rates and quantiles are the reader's: by the difference of two events, over whatever time it chooses.
//!
//! A stream ends after [`LONGEST`], at the stop of the daemon, and as soon as its key would not be let in; who wants to go on asks anew.

use std::{convert::Infallible, sync::Arc, time::Duration};

use actix_web::{
    HttpRequest, HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    web,
};
use bytes::Bytes;
use futures::stream;
use prometheus_client::{encoding::text::encode, registry::Registry};
use serde_json::{Map, Value, json};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, Interval, MissedTickBehavior},
};
use tokio_util::sync::CancellationToken;

use super::{AdminState, auth};
use crate::{
    http::{self, Problem},
    metrics::Metrics,
    position::Timestamp,
};

/// Streams at the same time: an eighth of the listener's connections, so that scrapers and probes always find one.
const MOST: usize = 32;
const PERIOD: Duration = Duration::from_secs(1);
/// What a client does not read waits in the kernel for about as long; then its place is another's.
const LONGEST: Duration = Duration::from_secs(600);

/// The streams of a listener.
#[derive(Clone)]
pub struct Streams {
    slots: Arc<Semaphore>,
    stopping: CancellationToken,
}

impl Default for Streams {
    fn default() -> Self {
        Self { slots: Arc::new(Semaphore::new(MOST)), stopping: CancellationToken::new() }
    }
}

impl Streams {
    /// Ends them all, and those that are still asked for.
    pub fn end(&self) {
        self.stopping.cancel();
    }
}

pub async fn live(state: web::Data<AdminState>, request: HttpRequest) -> Result<HttpResponse, Problem> {
    let slot = state.streams.slots.clone().try_acquire_owned().map_err(|_| {
        let why = format!(
            "{MOST} streams are open, which is as many as there may be: close another dashboard, or ask GET /status"
        );
        Problem { retry_after: Some(5), ..Problem::unavailable(why) }
    })?;
    http::streams(&request);
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let open = Open {
        ends: Instant::now() + LONGEST,
        sampled: Sampled::of(&state.metrics),
        state,
        request,
        ticks,
        _slot: slot,
    };
    let events = stream::unfold((open, true), |(mut open, is_first)| async move {
        let event = open.next().await?;
        // What an EventSource waits before it asks anew.
        let before = if is_first { "retry: 2000\n" } else { "" };
        Some((Ok::<_, Infallible>(Bytes::from(format!("{before}data: {event}\n\n"))), (open, false)))
    });
    Ok(HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .insert_header((X_CONTENT_TYPE_OPTIONS, "nosniff"))
        // nginx hands it on as it comes.
        .insert_header(("x-accel-buffering", "no"))
        .streaming(events))
}

/// A stream that is under way.
struct Open {
    state: web::Data<AdminState>,
    request: HttpRequest,
    ticks: Interval,
    ends: Instant,
    sampled: Sampled,
    _slot: OwnedSemaphorePermit,
}

impl Open {
    /// The next event's data; `None` at the end.
    async fn next(&mut self) -> Option<String> {
        tokio::select! {
            biased;
            () = self.state.streams.stopping.cancelled() => return None,
            _ = self.ticks.tick() => {}
        }
        // A key may have been withdrawn meanwhile, and there may be keys where there were none.
        let goes_on = Instant::now() < self.ends && auth::Door::of(&self.state).knows(self.request.headers());
        goes_on.then(|| self.event().to_string())
    }

    fn event(&self) -> Value {
        let mut event = super::page(&self.state);
        let samples = self.sampled.read();
        event["time"] = Timestamp::now().0.into();
        event["counters"] = json!({
            "rejected": samples.by_label("rejected_total"),
            "quarantined": samples.by_label("quarantined_total"),
            "consumed": samples.by_label("consumed_total"),
            "restarts": samples.by_label("restarts_total"),
            "answers": samples.by_label("answers_total"),
        });
        event["latency"] = samples.buckets("latency_bucket");
        event
    }
}

/// Metrics that can be read by being written alone: families and histograms do not tell what they hold.
struct Sampled(Registry);

impl Sampled {
    fn of(metrics: &Metrics) -> Self {
        let mut registry = Registry::default();
        registry.register("rejected", "", metrics.events_rejected.clone());
        registry.register("quarantined", "", metrics.events_quarantined.clone());
        registry.register("consumed", "", metrics.events_consumed.clone());
        registry.register("restarts", "", metrics.actor_restarts.clone());
        registry.register("answers", "", metrics.requests.clone());
        registry.register("latency", "", metrics.request_duration.clone());
        Self(registry)
    }

    fn read(&self) -> Samples {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.0);
        Samples(text)
    }
}

/// Lines of OpenMetrics, of samples with one label each, in which there is nothing to escape.
struct Samples(String);

impl Samples {
    /// The label's value and the sample's, of each with this name.
    fn of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = (&'a str, f64)> {
        self.0.lines().filter_map(move |line| {
            let (labels, value) = line.strip_prefix(name)?.strip_prefix('{')?.rsplit_once("\"} ")?;
            Some((labels.split_once("=\"")?.1, value.split(' ').next()?.parse().ok()?))
        })
    }

    fn by_label(&self, name: &str) -> Map<String, Value> {
        self.of(name).map(|(label, value)| (label.to_owned(), json!(value as u64))).collect()
    }

    /// `[bound, number]` each; the last bound, which is infinite, is null.
    fn buckets(&self, name: &str) -> Value {
        self.of(name)
            .map(|(bound, number)| json!([bound.parse::<f64>().ok().filter(|bound| bound.is_finite()), number as u64]))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        metrics::{ReasonLabel, SinkLabel},
        names::ActorName,
    };

    #[test]
    fn what_is_counted_by_labels_and_in_buckets_is_read_as_it_was_counted() {
        let metrics = Metrics::default();
        metrics.events_rejected.get_or_create(&ReasonLabel { reason: "invalid_json" }).inc_by(3);
        metrics.events_rejected.get_or_create(&ReasonLabel { reason: "missing_type" }).inc();
        metrics.events_consumed.get_or_create(&SinkLabel { sink: "archive" }).inc_by(7);
        metrics.actor_restarted(ActorName::Spooler);
        [0.0004, 0.0007, 0.02, 100.0].into_iter().for_each(|seconds| metrics.request_duration.observe(seconds));
        let samples = Sampled::of(&metrics).read();
        assert_eq!(Value::from(samples.by_label("rejected_total")), json!({ "invalid_json": 3, "missing_type": 1 }));
        assert_eq!(Value::from(samples.by_label("consumed_total")), json!({ "archive": 7 }));
        assert_eq!(Value::from(samples.by_label("restarts_total")), json!({ "spooler": 1 }));
        assert_eq!(Value::from(samples.by_label("answers_total")), json!({}));
        let buckets = samples.buckets("latency_bucket");
        let buckets = buckets.as_array().unwrap();
        assert_eq!(
            (&buckets[0], &buckets[1], buckets.last().unwrap()),
            (&json!([0.0005, 1]), &json!([0.001, 2]), &json!([null, 4]))
        );
        assert!(buckets.contains(&json!([0.025, 3])) && buckets.contains(&json!([60.0, 3])), "{buckets:?}");
    }
}
