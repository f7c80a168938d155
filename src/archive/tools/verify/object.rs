//! One object, by itself.

use std::convert::Infallible;

use super::{Fault, FaultKind, UnreadableEvents};
use crate::{
    archive::{
        line::Line,
        tools::{ArchiveReader, reader::ReadError},
        upload::objects::{ListedObject, ObjectName, hour_of},
    },
    position::Offset,
};

/// What reading an object showed.
#[derive(Debug, Default)]
pub(super) struct Checked {
    /// It expired between the LIST and the reading.
    pub(super) gone: bool,
    pub(super) size: u64,
    pub(super) records: u64,
    pub(super) first: Option<Offset>,
    /// Last offset + 1; none where the end could not be read.
    pub(super) end: Option<Offset>,
    pub(super) faults: Vec<Fault>,
    pub(super) unreadable: Option<UnreadableEvents>,
}

/// Reads it to its end, or to the damage. Blocks.
pub(super) fn check(reader: &ArchiveReader, object: &ListedObject) -> object_store::Result<Checked> {
    let mut checking = Checking::new(object, &reader.archive.topic);
    let Ok(read) = reader.each_line::<Infallible>(object, |text| {
        checking.line(text);
        Ok(())
    });
    match read {
        Ok(()) => Ok(checking.done()),
        Err(ReadError::Gone) => Ok(Checked { gone: true, ..Checked::default() }),
        Err(ReadError::Damaged(why)) => Ok(checking.damaged(why)),
        Err(ReadError::Store(error)) => Err(error),
    }
}

struct Checking {
    name: ObjectName,
    key: String,
    checked: Checked,
    lines: u64,
    last: Option<Offset>,
}

impl Checking {
    fn new(object: &ListedObject, topic: &str) -> Self {
        Self {
            name: object.name,
            key: object.name.key(topic).to_string(),
            checked: Checked { size: object.size, ..Checked::default() },
            lines: 0,
            last: None,
        }
    }

    fn line(&mut self, text: &[u8]) {
        self.lines += 1;
        match Line::parse(text) {
            Ok(line) => self.record(&line),
            Err(why) => self.fault(FaultKind::UnreadableLine, |line| format!("line {line} cannot be read: {why}")),
        }
    }

    fn record(&mut self, line: &Line<'_>) {
        let Line { offset, received, .. } = line;
        self.checked.records += 1;
        if self.checked.first.is_none() {
            self.checked.first = Some(*offset);
            let (named, is) = (self.name.hour, hour_of(*received));
            // An unreadable line before it may have been the first record.
            if named != is && self.lines == 1 {
                let received = received.to_rfc3339();
                self.fault(FaultKind::Name, |_| format!("its first record came at {received}, in another hour"));
            }
        }
        let x = self.name.chain_offset;
        if *offset < x {
            self.fault(FaultKind::Outside, |line| format!("line {line} holds offset {offset}, below the object's {x}"));
        }
        match self.last {
            Some(last) if *offset <= last => {
                self.fault(FaultKind::Order, |line| format!("line {line} holds offset {offset} after {last}"));
            }
            _ => {}
        }
        self.last = Some(*offset);
        if let Some(why) = line.unreadable() {
            let (key, offset, message) = (&self.key, *offset, why.to_string());
            let found = self.checked.unreadable.get_or_insert_with(|| UnreadableEvents {
                key: key.clone(),
                lines: 0,
                offset,
                message,
            });
            found.lines += 1;
        }
    }

    /// Described by the first line that has it, and counted.
    fn fault(&mut self, kind: FaultKind, message: impl FnOnce(u64) -> String) {
        match self.checked.faults.iter_mut().find(|fault| fault.kind == kind) {
            Some(fault) => fault.lines = fault.lines.map(|lines| lines + 1),
            None => {
                let (key, message) = (Some(self.key.clone()), message(self.lines));
                self.checked.faults.push(Fault { kind, key, lines: Some(1), message });
            }
        }
    }

    fn done(mut self) -> Checked {
        if self.lines == 0 {
            return self.damaged("it holds no record".to_owned());
        }
        self.checked.end = self.last.map(Offset::next);
        self.checked
    }

    fn damaged(mut self, why: String) -> Checked {
        let message = match self.last {
            Some(last) => format!("{why}; up to offset {last} it can be read"),
            None => why,
        };
        let (key, lines) = (Some(self.key), None);
        self.checked.faults.push(Fault { kind: FaultKind::Damaged, key, lines, message });
        self.checked
    }
}
