//! Processed events of the embedded store, as they are asked for.
//!
//! Each index ends with the row's id, which SQLite adds by itself and which grows with what is inserted: the order within
//! one millisecond, and a page's place in it. A statement names its index, so that none is ever a scan of the table.

use std::path::Path;

use rusqlite::{
    Connection, OpenFlags, Row, params_from_iter,
    types::{Value, ValueRef},
};
use serde_json::value::RawValue;

use super::reading::Cancel;
use crate::{
    position::Timestamp,
    store::{
        StoreError, StoreOptions,
        events::{By, Cursor, Data, End, EventsPage, EventsQuery, KeptEvent},
    },
};

/// The column of an index, and the index.
fn index(by: By<'_>) -> &'static str {
    match by {
        By::Id(_) => "event_id",
        By::Client(_) => "event_client",
        By::Type(_) => "event_type",
        By::Time => "event_time",
    }
}

/// The statement of a query, and what it is to be given.
fn statement(query: &EventsQuery) -> (String, Vec<Value>) {
    let mut conditions = Vec::new();
    let mut values = Vec::new();
    let text = |value: &Option<String>| value.clone().map(Value::from);
    for (column, value) in
        [("event_id", text(&query.id)), ("client_id", text(&query.client)), ("type", text(&query.event_type))]
    {
        if let Some(value) = value {
            conditions.push(format!("{column} = ?"));
            values.push(value);
        }
    }
    if let Some(start) = query.start() {
        conditions.push("time >= ?".to_owned());
        values.push(start.into());
    }
    match query.end() {
        End::Open => {}
        End::Before(end) => {
            conditions.push("time < ?".to_owned());
            values.push(end.into());
        }
        End::Behind(Cursor { time, place }) => {
            conditions.push("(time, rowid) < (?, ?)".to_owned());
            // A text that is no row of ours is behind all of that millisecond.
            values.extend([(*time).into(), place.parse::<i64>().unwrap_or(i64::MIN).into()]);
        }
    }
    // One more, which says that there is another page.
    values.push(i64::try_from(query.limit).unwrap_or(i64::MAX).saturating_add(1).into());
    let conditions = if conditions.is_empty() { "true".to_owned() } else { conditions.join(" AND ") };
    let statement = format!(
        "SELECT rowid, time, received, type, client_id, event_id, topic, generation, partition, offset, event, attributes
         FROM event INDEXED BY {} WHERE {conditions} ORDER BY time DESC, rowid DESC LIMIT ?",
        index(query.by())
    );
    (statement, values)
}

/// Reads on a connection of its own, beside the writer.
pub fn page(
    path: &Path,
    options: &StoreOptions,
    query: &EventsQuery,
    cancel: &Cancel,
) -> Result<EventsPage, StoreError> {
    let mut page = EventsPage::default();
    if query.is_empty() {
        return Ok(page);
    }
    let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    cancel.watch(&connection);
    connection.busy_timeout(options.timeout)?;
    let (statement, values) = statement(query);
    let mut statement = connection.prepare(&statement)?;
    cancel.check()?;
    let mut rows = statement.query(params_from_iter(values))?;
    while let Some(row) = rows.next()? {
        cancel.check()?;
        if !push(&mut page, row, query.limit)? {
            break;
        }
    }
    Ok(page)
}

fn push(page: &mut EventsPage, row: &Row<'_>, limit: usize) -> Result<bool, StoreError> {
    let text = |column| -> rusqlite::Result<Option<&str>> { Ok(row.get_ref(column)?.as_str_or_null()?) };
    let place = Cursor { time: row.get(1)?, place: row.get::<_, i64>(0)?.to_string() };
    let data = match row.get_ref(10)? {
        ValueRef::Text(bytes) => std::str::from_utf8(bytes).map_or(Data::Binary(bytes), Data::Text),
        ValueRef::Blob(bytes) => Data::Binary(bytes),
        _ => Data::Omitted,
    };
    let event = KeptEvent {
        id: text(5)?,
        event_type: text(3)?.unwrap_or_default(),
        client: text(4)?,
        time: Timestamp(place.time),
        received: Timestamp(row.get(2)?),
        topic: text(6)?.unwrap_or_default(),
        generation: row.get(7)?,
        partition: row.get(8)?,
        offset: row.get(9)?,
        data,
        attributes: text(11)?.and_then(|json| serde_json::from_str::<&RawValue>(json).ok()),
    };
    Ok(page.push(&event, place, limit))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tempfile::TempDir;

    use super::{super::database::Database, *};

    #[test]
    fn each_combination_of_filters_is_served_by_an_index_in_its_order() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("store.db");
        let options = StoreOptions {
            topic: "events".to_owned(),
            generation: 0,
            aggregates: Vec::new(),
            events: true,
            events_ttl: Duration::from_secs(60),
            timeout: Duration::from_secs(30),
        };
        drop(Database::open(&path, Arc::new(options)).unwrap());
        let connection = Connection::open(&path).unwrap();
        for combination in 0..64_u32 {
            let has = |bit: u32| combination & (1 << bit) != 0;
            let word = |bit| has(bit).then(|| "x".to_owned());
            let time = |bit, millis| has(bit).then(|| Timestamp(millis).to_datetime());
            let query = EventsQuery {
                id: word(0),
                client: word(1),
                event_type: word(2),
                from: time(3, 1000),
                to: time(4, 9000),
                limit: 100,
                after: has(5).then(|| Cursor { time: 5000, place: "7".to_owned() }),
            };
            let (statement, values) = statement(&query);
            let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
            let steps = plan.query_map(params_from_iter(values), |row| row.get::<_, String>(3)).unwrap();
            let steps: Vec<String> = steps.map(Result::unwrap).collect();
            let [step] = steps.as_slice() else { panic!("{statement}\n{steps:?}") };
            let with = format!("USING INDEX {}", index(query.by()));
            assert!(step.contains(&with), "{statement}\n{step}");
            let is_bounded = combination != 0;
            assert_eq!(step.starts_with("SEARCH event"), is_bounded, "{statement}\n{step}");
            // The end of the times bounds what is read, on a later page, too.
            let is_ended = has(4) || has(5);
            assert_eq!(step.contains("time<") || step.contains("(time,rowid)<"), is_ended, "{statement}\n{step}");
        }
    }
}
