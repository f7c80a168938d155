//! `check --schema FILE --against archive`: what a schema would have refused of the events that stand in the archive. It says where,
//! and how often, and never what stood there.

use std::{borrow::Cow, collections::BTreeMap};

use indicatif::ProgressBar;
use serde::Serialize;

use super::{ArchiveReader, Selection, reader::ReadError};
use crate::{
    archive::line::Line,
    config::OnUnreadable,
    event::{self, Envelope, EventFields},
    position::{Offset, Partition, Timestamp},
    schema::{Mismatch, Schema},
};

/// Of one kind, those that are named.
const EXAMPLES: usize = 5;
/// Kinds that are told apart; the rest is counted.
const MOST: usize = 1000;

/// What a schema would have refused.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Nothing would have been, and all could be read.
    pub ok: bool,
    /// All that were asked for, of whatever type.
    pub records: u64,
    /// Those of them that are events of the type.
    pub events: u64,
    pub refused: u64,
    pub refusals: Vec<Refused>,
    /// Those of further kinds.
    pub other: u64,
    /// A sentence for each object that could not be read whole.
    pub damaged: Vec<String>,
}

/// What is wrong in one way.
#[derive(Debug, Serialize)]
pub struct Refused {
    /// With `*` for the number of an element.
    pub pointer: String,
    pub keyword: String,
    /// Where in the schema, in quotes.
    pub schema_pointer: String,
    pub rule: String,
    pub events: u64,
    /// Where the first stand.
    pub first: Vec<Place>,
}

#[derive(Debug, Clone, Copy, Serialize)]
pub struct Place {
    pub partition: Partition,
    pub offset: Offset,
}

/// Reads the selected records, and looks at those of one of these types. Blocks.
///
/// # Errors
/// When the store does not answer.
pub fn conform(
    reader: &ArchiveReader,
    selection: &Selection,
    types: &[String],
    schema: &Schema,
    progress: &ProgressBar,
) -> anyhow::Result<Report> {
    let fields = EventFields::from(&reader.config.event);
    let mut objects = reader.ask(|| reader.archive.list_objects())?.objects;
    let is_next = |at: usize, objects: &[_]| selection.may_hold(&objects[at], objects.get(at + 1));
    let held: Vec<bool> = (0..objects.len()).map(|at| is_next(at, &objects)).collect();
    let mut held = held.into_iter();
    objects.retain(|_| held.next() == Some(true));
    progress.inc_length(objects.iter().map(|object| object.size).sum());
    let mut trial = Trial { types, schema, fields, report: Report::default(), kinds: BTreeMap::new() };
    for object in &objects {
        let partition = object.name.partition;
        let mut unreadable = 0;
        let Ok(read) = reader.each_line::<std::convert::Infallible>(object, |text| {
            match Line::parse(text) {
                Ok(line) if selection.has_record(line.offset, line.received) => match line.headers() {
                    Some(headers) => trial.record(partition, &line, &headers),
                    // By which its type is known, perhaps.
                    None => unreadable += 1,
                },
                Ok(_) => {}
                Err(_) => unreadable += 1,
            }
            Ok(())
        });
        let key = reader.key(object);
        match read {
            // One that is gone has expired since it was listed: as if we had come later.
            Ok(()) | Err(ReadError::Gone) => {}
            Err(ReadError::Damaged(why)) => trial.report.damaged.push(format!("{key}: {why}")),
            Err(ReadError::Store(error)) => return Err(reader.sentence(&error)),
        }
        if unreadable > 0 {
            trial.report.damaged.push(format!("{key}: {unreadable} lines cannot be read, and were not looked at"));
        }
        progress.inc(object.size);
    }
    Ok(trial.report())
}

struct Trial<'t> {
    types: &'t [String],
    schema: &'t Schema,
    fields: EventFields,
    report: Report,
    /// By the places in the event and in the schema.
    kinds: BTreeMap<(String, String), Refused>,
}

impl Trial<'_> {
    fn record(&mut self, partition: Partition, line: &Line<'_>, headers: &[(String, Option<Vec<u8>>)]) {
        self.report.records += 1;
        let Some(value) = line.value() else { return };
        let headers = || headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let received = Timestamp(line.received.timestamp_millis());
        // What is no event is none of a type.
        let Ok((event, _)) = event::read(&value, headers(), &self.fields, received) else { return };
        if !self.types.iter().any(|name| *name == event.event_type) {
            return;
        }
        self.report.events += 1;
        // Of a producer of the topic itself, perhaps: the door opens envelopes.
        let is_envelope = event::content_type_of(headers()).is_some_and(event::is_event_format);
        let data = match is_envelope.then(|| Envelope::open(&value, OnUnreadable::Accept)) {
            Some(Ok(envelope)) => envelope.data,
            _ => Cow::Borrowed(&*value),
        };
        if let Err(mismatch) = self.schema.check(&data) {
            self.refuse(mismatch, Place { partition, offset: line.offset });
        }
    }

    fn refuse(&mut self, mismatch: Mismatch, place: Place) {
        self.report.refused += 1;
        let Mismatch { place: pointer, keyword, schema_pointer, rule, .. } = mismatch;
        let kind = (pointer, schema_pointer);
        if self.kinds.len() == MOST && !self.kinds.contains_key(&kind) {
            self.report.other += 1;
            return;
        }
        let of = self.kinds.entry(kind).or_insert_with_key(|(pointer, schema_pointer)| Refused {
            pointer: pointer.clone(),
            schema_pointer: schema_pointer.clone(),
            keyword,
            rule,
            events: 0,
            first: Vec::new(),
        });
        of.events += 1;
        if of.first.len() < EXAMPLES {
            of.first.push(place);
        }
    }

    /// The commonest first.
    fn report(self) -> Report {
        let mut refusals: Vec<_> = self.kinds.into_values().collect();
        refusals.sort_by_key(|refused| std::cmp::Reverse(refused.events));
        let ok = self.report.refused == 0 && self.report.damaged.is_empty();
        Report { ok, refusals, ..self.report }
    }
}
