//! A query over a day of minutes by ten groups, beside a bare query of the same rows: by SQLite's and MongoDB's own libraries in
//! this process, on connections that stay open, where the daemon is asked over HTTP and writes JSON.

use std::time::Instant;

use anyhow::ensure;
use chrono::{DateTime, DurationRound, SecondsFormat, TimeDelta, Utc};
use futures::TryStreamExt;
use hdrhistogram::Histogram;
use mongodb::bson::{DateTime as BsonDateTime, Document, doc};
use rusqlite::{Connection, OpenFlags};

use crate::{
    rows::{Store, System},
    stage::{Stage, alone},
    support::{PATIENCE, daemon::Daemon, eventually},
    table::{Metric, Sample},
};

const MINUTES: i64 = 24 * 60;
const GROUPS: i64 = 10;
const ROWS: i64 = MINUTES * GROUPS;

impl Stage<'_> {
    pub(crate) fn query(&mut self, store: Store, system: System) -> anyhow::Result<Sample> {
        let name = self.name();
        let url = format!("mongodb://{}/?directConnection=true", self.services.mongodb.address());
        let setup = match store {
            Store::Embedded => alone(&name),
            Store::Mongodb => {
                alone(&name).set("store.kind", "mongodb").set("store.url", &url).set("store.database", &name)
            }
        };
        let daemon = setup.start();
        let begin = (Utc::now() - TimeDelta::hours(25)).duration_trunc(TimeDelta::minutes(1))?;
        fill(&daemon, begin)?;
        let end = begin + TimeDelta::minutes(MINUTES);
        let sample = match (system, store) {
            (System::Ingestd, _) => self.repeat(asking(&daemon, begin, end))?,
            (System::Yardstick, Store::Embedded) => self.repeat(selecting(&daemon, begin, end)?)?,
            (System::Yardstick, Store::Mongodb) => self.repeat(aggregating(&url, &name, begin, end)?)?,
        };
        if let Store::Mongodb = store {
            self.services.mongodb_command(&name, doc! { "dropDatabase": 1 });
        }
        Ok(sample)
    }

    /// One after the other, as long as a load is measured.
    fn repeat(&self, mut ask: impl FnMut() -> anyhow::Result<i64>) -> anyhow::Result<Sample> {
        let mut latencies = Histogram::<u64>::new(3)?;
        let began = Instant::now();
        while began.elapsed() < self.warm_up + self.length {
            let asked = Instant::now();
            let rows = ask()?;
            ensure!(rows == ROWS, "{rows} rows, instead of {ROWS}");
            if began.elapsed() > self.warm_up {
                latencies.record(u64::try_from(asked.elapsed().as_micros())?)?;
            }
        }
        let millis = |quantile| latencies.value_at_quantile(quantile) as f64 / 1000.0;
        let mut sample = Sample::default();
        sample.set(Metric::Rate, (latencies.len() as f64 * ROWS as f64) / self.length.as_secs_f64());
        sample.set(Metric::P50, millis(0.5));
        sample.set(Metric::P99, millis(0.99));
        Ok(sample)
    }
}

/// An event of each group in each minute.
fn fill(daemon: &Daemon, begin: DateTime<Utc>) -> anyhow::Result<()> {
    for minute in 0..MINUTES {
        let time = (begin + TimeDelta::minutes(minute)).to_rfc3339_opts(SecondsFormat::Secs, true);
        let event = |group| format!(r#"{{"type":"login","client_id":"client-{group}","timestamp":"{time}"}}"#);
        let events: Vec<_> = (0..GROUPS).map(event).collect();
        let reply = daemon.post(None, format!("[{}]", events.join(",")).as_bytes());
        ensure!(reply.status == 200, "{reply:?}");
    }
    eventually("all are counted", PATIENCE, || {
        (daemon.metric("ingestd_events_aggregated_total")? >= ROWS as f64).then_some(())
    });
    Ok(())
}

fn asking(daemon: &Daemon, begin: DateTime<Utc>, end: DateTime<Utc>) -> impl FnMut() -> anyhow::Result<i64> {
    let text = |time: DateTime<Utc>| time.to_rfc3339_opts(SecondsFormat::Secs, true);
    let path = format!("/v1/aggregates/events_by_type?from={}&to={}&limit=1000000", text(begin), text(end));
    let (agent, url) = (ureq::Agent::new_with_defaults(), daemon.admin_url(&path));
    move || {
        let body = agent.get(&url).call()?.body_mut().with_config().limit(1 << 30).read_to_vec()?;
        // A tree of it would be this client's work, and more than the daemon's.
        Ok(memchr::memmem::find_iter(&body, b"\"window_start\":").count() as i64)
    }
}

fn selecting(
    daemon: &Daemon,
    begin: DateTime<Utc>,
    end: DateTime<Utc>,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<i64>> {
    let connection = Connection::open_with_flags(daemon.data().join("store.db"), OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    Ok(move || {
        let mut statement = connection.prepare_cached(
            "SELECT window_start, grp, sum(count) FROM bucket WHERE aggregate = 1 AND window_start >= ? AND window_start < ?
             GROUP BY window_start, grp ORDER BY window_start, grp",
        )?;
        let rows = statement.query_map([begin.timestamp_millis(), end.timestamp_millis()], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?))
        })?;
        let rows: Vec<_> = rows.collect::<rusqlite::Result<_>>()?;
        Ok(std::hint::black_box(rows).len() as i64)
    })
}

fn aggregating(
    url: &str,
    database: &str,
    begin: DateTime<Utc>,
    end: DateTime<Utc>,
) -> anyhow::Result<impl FnMut() -> anyhow::Result<i64>> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let client = runtime.block_on(mongodb::Client::with_uri_str(url))?;
    let buckets = client.database(database).collection::<Document>("aggregate_events_by_type");
    let date = |time: DateTime<Utc>| BsonDateTime::from_millis(time.timestamp_millis());
    let pipeline = [
        doc! { "$match": { "window_start": { "$gte": date(begin), "$lt": date(end) } } },
        doc! { "$group": {
            "_id": { "window_start": "$window_start", "group": "$group" }, "count": { "$sum": "$count" },
        } },
        doc! { "$sort": { "_id.window_start": 1, "_id.group": 1 } },
    ];
    Ok(move || {
        let rows = runtime.block_on(async {
            let cursor = buckets.aggregate(pipeline.clone()).await?;
            cursor.try_collect::<Vec<Document>>().await
        })?;
        Ok(std::hint::black_box(rows).len() as i64)
    })
}
