//! How far the forwarder is known to have come, and what Kafka's account of it says.
//!
//! Before each transaction its mark `from,to` is made durable, and the transaction commits the position `to`. So whatever
//! happens to either of them, Kafka's position is `from` or `to`: anything else is the doing of another process.

use anyhow::Context;
use rusqlite::Connection;

use super::{DOUBT, FILE, READER};
use crate::{log::embedded::schema, position::Offset};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Position {
    /// Everything before it is committed in Kafka.
    pub at: Offset,
    /// The end of the transaction that begins there and of which it is not known whether it was committed.
    pub doubt: Option<Offset>,
}

/// Where the file stands beside Kafka's position.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Nothing was ever forwarded.
    New,
    GoesOn(Offset),
    /// Kafka has no position any more; whether the transaction up to `to` was committed cannot be known.
    Forgotten {
        to: Offset,
    },
    /// Kafka has more than this file, which knows of nothing beyond `known`.
    OlderCopy {
        position: Offset,
        known: Offset,
    },
    /// Kafka stands inside of the transaction up to `to`, which was committed as a whole or not at all.
    OtherCopy {
        position: Offset,
        to: Offset,
    },
}

impl Position {
    pub fn read(database: &Connection) -> anyhow::Result<Self> {
        let cursor = schema::cursor(database, READER)?.unwrap_or_default();
        let Some(mark) = schema::meta(database, DOUBT)? else { return Ok(Self { at: cursor, doubt: None }) };
        let parse = |mark: &str| {
            let (from, to) = mark.split_once(',')?;
            Some((Offset(from.parse().ok()?), Offset(to.parse().ok()?)))
        };
        let (from, to) = parse(&mark).with_context(|| format!("{FILE} holds the mark {mark:?}, which is none"))?;
        let at = cursor.max(from);
        Ok(Self { at, doubt: (to > at).then_some(to) })
    }

    pub fn mark(from: Offset, to: Offset) -> String {
        format!("{from},{to}")
    }

    /// What `committed`, Kafka's position, says.
    pub fn compare(self, committed: Option<Offset>) -> Resume {
        let Self { at, doubt } = self;
        match (committed, doubt) {
            (None, None) => Resume::New,
            (None, Some(to)) => Resume::Forgotten { to },
            (Some(position), _) if position <= at || Some(position) == doubt => Resume::GoesOn(position.max(at)),
            (Some(position), Some(to)) if position < to => Resume::OtherCopy { position, to },
            (Some(position), _) => Resume::OlderCopy { position, known: doubt.unwrap_or(at) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kafka_stands_at_the_begin_or_the_end_of_the_transaction_in_doubt_or_another_process_was_there() {
        let (at, to) = (Offset(200), Offset(230));
        let doubtful = Position { at, doubt: Some(to) };
        let sure = Position { at, doubt: None };
        for (position, committed, standing) in [
            (sure, None, Resume::New),
            (sure, Some(200), Resume::GoesOn(at)),
            (sure, Some(201), Resume::OlderCopy { position: Offset(201), known: at }),
            (doubtful, None, Resume::Forgotten { to }),
            (doubtful, Some(200), Resume::GoesOn(at)),
            (doubtful, Some(230), Resume::GoesOn(to)),
            (doubtful, Some(205), Resume::OtherCopy { position: Offset(205), to }),
            (doubtful, Some(231), Resume::OlderCopy { position: Offset(231), known: to }),
            // A group's position that was moved back by hand: what was committed stays committed.
            (doubtful, Some(150), Resume::GoesOn(at)),
        ] {
            assert_eq!(position.compare(committed.map(Offset)), standing, "{position:?}, {committed:?}");
        }
    }
}
