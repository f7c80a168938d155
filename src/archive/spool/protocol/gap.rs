//! A hole that retention tore (4.4): the partition halts until the operator says that it may be left, by
//! `archive.on_gap = "skip"` or by a word in the archive itself (`ingestd archive skip`), which any worker finds.
//!
//! Or the hole is filled, from the segments that a retired machine kept (`ingestd archive drain`).
//!
//! Whoever goes on has its partition assigned anew first: the chain may have grown meanwhile, and going on from the end
//! that was known when it halted would begin a second chain there.

use std::collections::BTreeMap;

use super::{Effect, Phase, Protocol};
use crate::{
    archive::messages::{GapAnswer, SkipMarker},
    config::OnGap,
    consume::{Halt, Reassign},
    log::Epoch,
    position::{Offset, Partition},
};

#[derive(Default)]
pub(super) struct Gaps {
    /// Where the operator's word reaches, of partitions that are being opened anew because of it.
    allowed: BTreeMap<Partition, Offset>,
    /// Up to here a partition's lost records were counted: a hole is met again at each assignment.
    counted: BTreeMap<Partition, Offset>,
}

impl Protocol {
    /// Records between the chain's end `x` and the log's start are gone.
    pub(super) fn gap(&mut self, partition: Partition, x: Offset, log_start: Offset, on_gap: OnGap) -> Vec<Effect> {
        let counted = self.gaps.counted.entry(partition).or_default();
        let from = x.max(*counted);
        *counted = log_start.max(*counted);
        let mut effects = Vec::new();
        if from < log_start {
            effects.push(Effect::Lost { partition, from, to: log_start });
        }
        let allowed = self.gaps.allowed.remove(&partition).is_some_and(|to| log_start <= to);
        if allowed || on_gap == OnGap::Skip {
            effects.push(Effect::Skipped { partition, from: x, to: log_start });
            effects.extend(self.begin(partition, x, log_start));
        } else {
            effects.extend(self.halt_at_gap(partition, x, log_start, Ok(None)));
            effects.extend(self.ask_about_gap(partition));
        }
        effects
    }

    fn halt_at_gap(&mut self, partition: Partition, x: Offset, log_start: Offset, word: SkipMarker) -> Vec<Effect> {
        let but = match &word {
            // A word about an earlier hole.
            Ok(Some(to)) if *to <= x => String::new(),
            Ok(Some(to)) => format!("; the word to skip to {to} does not reach that far"),
            Ok(None) => String::new(),
            Err(what) => format!("; the word to skip them cannot be read: {what}"),
        };
        let reason = format!("offsets {x} to {log_start} were removed from the log before they were archived{but}");
        let action = format!(
            "if they are gone for good: `ingestd archive skip {} {partition} --to {log_start}`, \
             or set archive.on_gap = \"skip\" and reload",
            self.rules.topic_folder
        );
        let Some(spooled) = self.partitions.get_mut(&partition) else { return Vec::new() };
        spooled.phase = Phase::Gap { log_start, word };
        spooled.cursor = x;
        vec![Effect::Halt(Halt { partition, epoch: spooled.epoch, reason, action })]
    }

    fn ask_about_gap(&self, partition: Partition) -> Option<Effect> {
        self.partitions.get(&partition).map(|spooled| Effect::AskAboutGap { partition, epoch: spooled.epoch })
    }

    fn at_gaps(&self) -> Vec<Partition> {
        let at_gap = self.partitions.iter().filter(|(_, spooled)| matches!(spooled.phase, Phase::Gap { .. }));
        at_gap.map(|(partition, _)| *partition).collect()
    }

    /// Asks the archive how things stand.
    pub fn ask_about_gaps(&self) -> Vec<Effect> {
        self.at_gaps().into_iter().filter_map(|partition| self.ask_about_gap(partition)).collect()
    }

    /// The configuration allows holes to be left.
    pub fn skip_gaps(&mut self) -> Vec<Effect> {
        self.at_gaps().into_iter().filter_map(|partition| self.reopen(partition)).collect()
    }

    fn reopen(&mut self, partition: Partition) -> Option<Effect> {
        let spooled = self.partitions.get_mut(&partition)?;
        spooled.phase = Phase::Opening { chain_end: None, found: None };
        Some(Effect::Reassign(Reassign { partition, epoch: spooled.epoch }))
    }

    /// How things stand with this partition's hole.
    pub fn gap_news(&mut self, partition: Partition, epoch: Epoch, news: GapAnswer) -> Vec<Effect> {
        let Some(spooled) = self.current(partition, epoch) else { return Vec::new() };
        let (x, Phase::Gap { log_start, word: known }) = (spooled.cursor, &spooled.phase) else { return Vec::new() };
        let log_start = *log_start;
        match news {
            GapAnswer::Grown => self.reopen(partition).into_iter().collect(),
            GapAnswer::Skip(Ok(Some(to))) if log_start <= to => {
                self.gaps.allowed.insert(partition, to);
                self.reopen(partition).into_iter().collect()
            }
            GapAnswer::Skip(word) if word != *known => self.halt_at_gap(partition, x, log_start, word),
            GapAnswer::Skip(_) => Vec::new(),
        }
    }
}
