//! The dead letters of the embedded log: the table's statements, and what operators do with it.
//!
//! Listing reads beside the writer, on connections of its own. Changes go through the log's one writer: a replay
//! appends the record and closes its letter in one transaction, so that it happens once.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use bytes::Bytes;
use crossbeam_channel::{RecvTimeoutError, bounded};
use rusqlite::{Connection, OptionalExtension, Row, Transaction, named_params, params};

use super::{EmbeddedLog, LetterChange, Write, schema};
use crate::{
    config::LiveConfig,
    log::dead_letters::{
        BATCH_BYTES, BATCH_LETTERS, DeadLetter, DeadLetters, Filter, FullLetter, HeaderText, LettersError, Listed,
        Origin, PATIENCE, Purge, Replay, Source, State, Summary,
        replay::{Admitted, ReplayCheck},
    },
    position::{Offset, Partition, Timestamp},
};

/// For one transaction of the writer, which may have an append before it.
const ANSWER: Duration = Duration::from_secs(30);

/// Keeps a letter, unless it is there already.
pub(super) fn insert(transaction: &Transaction<'_>, letter: &DeadLetter) -> rusqlite::Result<()> {
    let headers = headers_of(letter).map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    transaction
        .prepare_cached(
            "INSERT OR IGNORE INTO dead_letters VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, 'open')",
        )?
        .execute(params![
            letter.id(),
            letter.topic,
            letter.generation,
            letter.partition.0,
            letter.origin.stored(),
            letter.received.0,
            letter.reason,
            letter.message,
            letter.time.0,
            letter.key,
            letter.value.as_deref(),
            headers
        ])?;
    Ok(())
}

/// Its headers as they are stored.
fn headers_of(letter: &DeadLetter) -> serde_json::Result<String> {
    let headers = letter.headers.iter().map(|(name, value)| HeaderText::of(name, value.as_deref()));
    serde_json::to_string(&headers.collect::<Vec<_>>())
}

/// What a letter takes in the file besides its bytes: its facts and its places in three trees.
const ROW: u64 = 512;
/// Its bytes.
const BYTES: &str = "(coalesce(octet_length(value), 0) + coalesce(octet_length(key), 0) + octet_length(message) + octet_length(headers))";

/// What a letter takes of the quarantine's room: what [`BYTES`] says, once it is stored.
pub(super) fn size(letter: &DeadLetter) -> u64 {
    let value = letter.value.as_ref().map_or(0, Bytes::len);
    let key = letter.key.as_ref().map_or(0, Vec::len);
    let headers = headers_of(letter).map_or(0, |headers| headers.len());
    (value + key + letter.message.len() + headers) as u64 + ROW
}

/// What those in quarantine take, together.
pub(super) fn quarantined(database: &Connection) -> rusqlite::Result<u64> {
    let (bytes, letters): (i64, i64) = database.query_row(
        &format!("SELECT coalesce(sum({BYTES}), 0), count(*) FROM dead_letters WHERE offset < 0"),
        [],
        |row| Ok((row.get(0)?, row.get(1)?)),
    )?;
    Ok(bytes.cast_unsigned() + letters.cast_unsigned() * ROW)
}

/// Closes an open letter; whether it was one.
pub(super) fn close(transaction: &Transaction<'_>, id: &str, state: State) -> rusqlite::Result<bool> {
    transaction
        .prepare_cached("UPDATE dead_letters SET state = ?2 WHERE id = ?1 AND state = 'open'")?
        .execute(params![id, state.as_str()])
        .map(|rows| rows > 0)
}

/// Removes a letter. One whose record may be counted again after a crash (it is not below `counted`) leaves a row that
/// says that it was purged, or it would come back. `room` grows by what the quarantine has more of then.
pub(super) fn purge(
    transaction: &Transaction<'_>,
    id: &str,
    counted: Offset,
    room: &mut u64,
) -> rusqlite::Result<bool> {
    let removed = transaction
        .prepare_cached(&format!("DELETE FROM dead_letters WHERE id = ?1 AND offset < ?2 RETURNING offset, {BYTES}"))?
        .query_row(params![id, counted.as_i64()], |row| {
            Ok((row.get::<_, i64>(0)?, row.get::<_, Option<i64>>(1)?.unwrap_or_default().cast_unsigned()))
        })
        .optional()?;
    if let Some((offset, bytes)) = removed {
        if offset < 0 {
            *room += bytes + ROW;
        }
        return Ok(true);
    }
    transaction
        .prepare_cached(
            "UPDATE dead_letters SET state = CASE state WHEN 'open' THEN 'purged' ELSE state END,
             key = NULL, value = NULL, headers = '[]' WHERE id = ?1",
        )?
        .execute([id])
        .map(|rows| rows > 0)
}

/// The letters of records at or beyond `from`, in whatever state.
pub(super) fn known(database: &Connection, source: &Source, from: Offset) -> anyhow::Result<BTreeSet<Offset>> {
    let mut statement = database.prepare(
        "SELECT offset FROM dead_letters WHERE topic = ?1 AND generation = ?2 AND partition = ?3 AND offset >= ?4",
    )?;
    let Source { topic, generation, partition } = source;
    let offsets = statement.query_map(params![topic, generation, partition.0, from.as_i64()], |row| {
        row.get::<_, i64>(0).map(|offset| Offset(offset.cast_unsigned()))
    })?;
    Ok(offsets.collect::<rusqlite::Result<_>>()?)
}

const SELECT: &str = "
    SELECT id, state, reason, message, time, received, topic, generation, partition, offset, coalesce(length(value), 0)
    FROM dead_letters
    WHERE (:from IS NULL OR time >= :from) AND (:to IS NULL OR time < :to)
      AND (:reason IS NULL OR reason = :reason) AND (:partition IS NULL OR partition = :partition)
      AND (:all OR state = 'open') AND (:ids IS NULL OR id IN (SELECT value FROM json_each(:ids)))
    ORDER BY time, id LIMIT :limit";

fn select(database: &Connection, filter: &Filter, limit: usize) -> rusqlite::Result<Listed> {
    let ids = (!filter.ids.is_empty()).then(|| serde_json::Value::from(filter.ids.clone()).to_string());
    let mut statement = database.prepare(SELECT)?;
    let parameters = named_params! {
        ":from": filter.from.map(|time| time.0), ":to": filter.to.map(|time| time.0), ":reason": filter.reason,
        ":partition": filter.partition.map(|partition| partition.0), ":all": filter.all, ":ids": ids,
        ":limit": i64::try_from(limit).unwrap_or(i64::MAX).saturating_add(1),
    };
    let mut dead_letters = statement.query_map(parameters, summary)?.collect::<rusqlite::Result<Vec<_>>>()?;
    let truncated = dead_letters.len() > limit;
    dead_letters.truncate(limit);
    Ok(Listed { dead_letters, truncated })
}

fn summary(row: &Row<'_>) -> rusqlite::Result<Summary> {
    Ok(Summary {
        id: row.get(0)?,
        state: state(&row.get::<_, String>(1)?),
        reason: row.get(2)?,
        message: row.get(3)?,
        time: Timestamp(row.get(4)?),
        received: Timestamp(row.get(5)?),
        topic: row.get(6)?,
        generation: row.get(7)?,
        partition: Partition(row.get(8)?),
        offset: Offset::from_kafka(row.get(9)?),
        size: row.get::<_, i64>(10)?.cast_unsigned(),
        value_omitted: false,
    })
}

fn state(text: &str) -> State {
    [State::Replayed, State::Purged].into_iter().find(|state| state.as_str() == text).unwrap_or(State::Open)
}

fn load(database: &Connection, id: &str) -> rusqlite::Result<Option<(DeadLetter, State)>> {
    let read = |row: &Row<'_>| {
        let headers = |json: String| -> Result<_, Box<dyn std::error::Error + Send + Sync>> {
            let headers: Vec<HeaderText> = serde_json::from_str(&json)?;
            Ok(headers.into_iter().map(HeaderText::into_bytes).collect::<Result<_, _>>()?)
        };
        let corrupt = |error| rusqlite::Error::FromSqlConversionFailure(10, rusqlite::types::Type::Text, error);
        let no_origin = || rusqlite::Error::IntegralValueOutOfRange(3, -1);
        let letter = DeadLetter {
            topic: row.get(0)?,
            generation: row.get(1)?,
            partition: Partition(row.get(2)?),
            origin: Origin::of(row.get(3)?, id).ok_or_else(no_origin)?,
            received: Timestamp(row.get(4)?),
            reason: row.get(5)?,
            message: row.get(6)?,
            time: Timestamp(row.get(7)?),
            key: row.get(8)?,
            value: row.get::<_, Option<Vec<u8>>>(9)?.map(Bytes::from),
            headers: headers(row.get(10)?).map_err(corrupt)?,
        };
        Ok((letter, state(&row.get::<_, String>(11)?)))
    };
    database
        .prepare_cached(
            "SELECT topic, generation, partition, offset, received, reason, message, time, key, value, headers, state
             FROM dead_letters WHERE id = ?1",
        )?
        .query_row([id], read)
        .optional()
}

/// The letters of an open embedded log.
pub struct EmbeddedLetters {
    log: EmbeddedLog,
    config: LiveConfig,
}

impl EmbeddedLetters {
    pub fn new(log: EmbeddedLog, config: LiveConfig) -> Self {
        Self { log, config }
    }

    fn reader(&self) -> Result<Connection, LettersError> {
        schema::open_reader(&self.log.path).map_err(|error| LettersError::Unavailable(format!("{error:#}")))
    }

    fn cannot_read(&self, error: &rusqlite::Error) -> LettersError {
        let path = self.log.path.display();
        LettersError::Unavailable(format!("the dead letters in {path} cannot be read: {error}"))
    }

    /// The letters to change. Those that are named must exist.
    fn selected(&self, database: &Connection, filter: &Filter) -> Result<Listed, LettersError> {
        let limit = filter.limit.unwrap_or(Filter::CHANGE_LIMIT);
        let listed = select(database, filter, limit).map_err(|error| self.cannot_read(&error))?;
        let known = |id: &String| database.prepare_cached("SELECT 1 FROM dead_letters WHERE id = ?1")?.exists([id]);
        let mut missing = Vec::new();
        for id in &filter.ids {
            if !known(id).map_err(|error| self.cannot_read(&error))? {
                missing.push(id.as_str());
            }
        }
        if missing.is_empty() { Ok(listed) } else { Err(LettersError::no_such(&missing)) }
    }

    fn change(&self, change: LetterChange) -> Result<Vec<bool>, LettersError> {
        let unavailable = |why: &str| LettersError::Unavailable(why.to_owned());
        let (reply, answer) = bounded(1);
        self.log
            .writer
            .try_send(Write::Letters(change, reply))
            .map_err(|_| unavailable("the embedded log's queue is full or its thread has ended"))?;
        match answer.recv_timeout(ANSWER) {
            Ok(outcome) => outcome.map_err(LettersError::Unavailable),
            Err(RecvTimeoutError::Timeout) => Err(unavailable("the embedded log's disk does not answer")),
            Err(RecvTimeoutError::Disconnected) => Err(unavailable("the embedded log's thread has ended")),
        }
    }

    fn replay_batch(&self, batch: Vec<Admitted>, done: &mut Replay) -> Result<(), LettersError> {
        if batch.is_empty() {
            return Ok(());
        }
        let ids: Vec<_> = batch.iter().map(|record| record.id.clone()).collect();
        let replayed = self.change(LetterChange::Replay(batch))?;
        for (id, replayed) in ids.into_iter().zip(replayed) {
            if replayed { &mut done.replayed } else { &mut done.already }.push(id);
        }
        Ok(())
    }
}

impl DeadLetters for EmbeddedLetters {
    fn list(&self, filter: &Filter) -> Result<Listed, LettersError> {
        let limit = filter.limit.unwrap_or(Filter::LIST_LIMIT);
        select(&self.reader()?, filter, limit).map_err(|error| self.cannot_read(&error))
    }

    fn show(&self, id: &str) -> Result<FullLetter, LettersError> {
        let found = load(&self.reader()?, id).map_err(|error| self.cannot_read(&error))?;
        let (letter, state) = found.ok_or_else(|| LettersError::no_such(&[id]))?;
        Ok(FullLetter::of(&letter, state, None))
    }

    fn replay(&self, filter: &Filter, correction: Option<&[u8]>) -> Result<Replay, LettersError> {
        filter.allows(correction)?;
        let deadline = Instant::now() + PATIENCE;
        let check = ReplayCheck::of(&self.config.load());
        let database = self.reader()?;
        let selected = self.selected(&database, &filter.open_or_named())?;
        let mut done = Replay { truncated: selected.truncated, ..Replay::default() };
        let (mut batch, mut bytes) = (Vec::new(), 0);
        for summary in &selected.dead_letters {
            if Instant::now() >= deadline {
                done.truncated = true;
                break;
            }
            // It may have been purged since it was selected.
            let found = load(&database, &summary.id).map_err(|error| self.cannot_read(&error))?;
            match found {
                Some((letter, State::Open)) => match check.admit(&letter, None, correction) {
                    Ok(admitted) => {
                        bytes += admitted.size();
                        batch.push(admitted);
                    }
                    Err(refused) => done.refused.push(refused),
                },
                _ => done.already.push(summary.id.clone()),
            }
            if batch.len() >= BATCH_LETTERS || bytes >= BATCH_BYTES {
                self.replay_batch(std::mem::take(&mut batch), &mut done)?;
                bytes = 0;
            }
        }
        self.replay_batch(batch, &mut done)?;
        Ok(done)
    }

    fn purge(&self, filter: &Filter) -> Result<Purge, LettersError> {
        let deadline = Instant::now() + PATIENCE;
        let selected = self.selected(&self.reader()?, filter)?;
        let mut done = Purge { truncated: selected.truncated, ..Purge::default() };
        let ids: Vec<_> = selected.dead_letters.into_iter().map(|letter| letter.id).collect();
        for part in ids.chunks(BATCH_LETTERS) {
            if Instant::now() >= deadline {
                done.truncated = true;
                break;
            }
            let purged = self.change(LetterChange::Purge(part.to_vec()))?;
            done.purged.extend(part.iter().zip(purged).filter(|(_, purged)| *purged).map(|(id, _)| id.clone()));
        }
        Ok(done)
    }
}
