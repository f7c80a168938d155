//! The objects of one partition, as a chain: a pure judgement of what reading them showed.

use super::{Fault, FaultKind, Head, Hole, PartitionReport, Report, UnreadableEvents, object::Checked};
use crate::{
    archive::upload::objects::ObjectName,
    position::{Offset, Partition},
};

/// How the objects follow each other.
pub(super) struct Walk<'a> {
    /// Where the chain ends; none where the last object's end cannot be read.
    pub(super) end: Option<Offset>,
    pub(super) has_gap: bool,
    /// Each fault, with the object that it is found at.
    pub(super) faults: Vec<(&'a ObjectName, FaultKind, String)>,
}

impl<'a> Walk<'a> {
    /// `objects` in the order of their positions.
    pub(super) fn along(objects: impl Iterator<Item = (&'a ObjectName, &'a Checked)>) -> Self {
        let mut walk = Self { end: None, has_gap: false, faults: Vec::new() };
        // What was expired at the front is no fault, so the first one may begin anywhere.
        for (name, checked) in objects.filter(|(_, checked)| !checked.gone) {
            let x = name.chain_offset;
            match walk.end {
                Some(end) if end < x => {
                    walk.has_gap = true;
                    let what = format!("offsets {end} to {x} stand in no object: the one before ends at {end}");
                    walk.faults.push((name, FaultKind::Gap, what));
                }
                Some(end) if end > x => {
                    let what = format!("no object ends at {x}, where it begins: the one before ends at {end}");
                    walk.faults.push((name, FaultKind::Overlap, what));
                }
                _ => {}
            }
            // An end that cannot be read may be anywhere; that object's damage is the fault then.
            walk.end = checked.end.map(|end| end.max(walk.end.unwrap_or_default()));
        }
        walk
    }
}

pub(super) fn report<'a>(
    topic: &str,
    partition: Partition,
    objects: impl Iterator<Item = (&'a ObjectName, &'a Checked)>,
    head: &Head,
) -> PartitionReport {
    let objects: Vec<_> = objects.filter(|(_, checked)| !checked.gone).collect();
    let mut report = PartitionReport {
        partition,
        objects: objects.len() as u64,
        records: objects.iter().map(|(_, checked)| checked.records).sum(),
        bytes: objects.iter().map(|(_, checked)| checked.size).sum(),
        first_offset: objects.iter().find_map(|(_, checked)| checked.first),
        end: None,
        head_end: head.end,
        holes: Vec::new(),
        holes_in_all: 0,
        unreadable_events: Vec::new(),
        unreadable_events_in_all: 0,
        faults: Vec::new(),
        faults_in_all: 0,
    };
    let walk = Walk::along(objects.iter().copied());
    report.end = walk.end;
    let mut of_chain = walk.faults.into_iter().peekable();
    for (name, checked) in objects {
        while let Some((name, kind, message)) = of_chain.next_if(|(at, ..)| *at == name) {
            report.fault(Fault { kind, key: Some(name.key(topic).to_string()), lines: None, message });
        }
        checked.faults.iter().for_each(|fault| report.fault(fault.clone()));
        if let Some(events) = &checked.unreadable {
            let UnreadableEvents { lines, .. } = events;
            tell(&mut report.unreadable_events, &mut report.unreadable_events_in_all, *lines, events.clone());
        }
        if let Some(first) = checked.first.filter(|first| *first > name.chain_offset) {
            let hole = Hole { from: name.chain_offset, to: first, key: name.key(topic).to_string() };
            tell(&mut report.holes, &mut report.holes_in_all, 1, hole);
        }
    }
    head.faults.iter().for_each(|fault| report.fault(fault.clone()));
    if let (Some(head_end), Some(end)) = (head.end, report.end)
        && head_end > end
    {
        let message = format!("the head says that the chain reaches {head_end}, but its last object ends at {end}");
        report.fault(Fault { kind: FaultKind::Head, key: None, lines: None, message });
    }
    report
}

impl PartitionReport {
    fn fault(&mut self, fault: Fault) {
        tell(&mut self.faults, &mut self.faults_in_all, 1, fault);
    }
}

/// Counts all, and tells the first [`Report::MOST`].
fn tell<T>(told: &mut Vec<T>, in_all: &mut u64, count: u64, one: T) {
    *in_all += count;
    if told.len() < Report::MOST {
        told.push(one);
    }
}
