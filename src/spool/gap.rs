//! A hole that retention tore (4.4): the partition halts until the operator says that it may be left, by
//! `archive.on_gap = "skip"` or by a word in the archive itself (`ingestd archive skip`), which any worker finds.
//!
//! Whoever goes on has its partition assigned anew first: meanwhile the chain may have grown (a retired machine's
//! segments were sent), and going on from the end that was known when it halted would begin a second chain there.

use std::collections::BTreeMap;

use actix::{Context, Handler, Message};

use super::{Phase, Spooler};
use crate::{
    config::OnGap,
    consume::{Halt, Reassign},
    health::SinkName,
    position::{Offset, Partition},
    queue::Epoch,
    upload::AskSkip,
};

/// From the uploader: what the operator has said about this partition's hole.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct SkipSaid {
    pub partition: Partition,
    pub epoch: Epoch,
    pub word: Word,
}

/// Records below the offset may be missing; or why the word cannot be read.
pub type Word = Result<Option<Offset>, String>;

#[derive(Default)]
pub(super) struct Gaps {
    /// Where the operator's word reaches, of partitions that are being opened anew because of it.
    allowed: BTreeMap<Partition, Offset>,
    /// Up to here a partition's lost records were counted: a hole is met again at each assignment.
    counted: BTreeMap<Partition, Offset>,
}

impl Spooler {
    /// How often the archive is asked for a word, in ticks.
    const ASK_SKIP_TICKS: u32 = 3;

    /// Records between the chain's end `x` and the log's start are gone.
    pub(super) fn gap(&mut self, partition: Partition, x: Offset, log_start: Offset) {
        let counted = self.gaps.counted.entry(partition).or_default();
        let lost = log_start.since(x.max(*counted));
        *counted = log_start.max(*counted);
        if lost > 0 {
            self.metrics.lost(SinkName::Archive, &self.topic, partition, lost);
            tracing::error!(%partition, from = %x, to = %log_start, lost, "records were removed from the log before they were archived");
        }
        let allowed = self.gaps.allowed.remove(&partition).is_some_and(|to| log_start <= to);
        if allowed || self.config.load().archive.on_gap == OnGap::Skip {
            tracing::warn!(%partition, from = %x, to = %log_start, "going on without them, as the operator said");
            return self.begin(partition, x, log_start);
        }
        self.halt_at_gap(partition, x, log_start, Ok(None));
        self.ask_skip(partition);
    }

    fn halt_at_gap(&mut self, partition: Partition, x: Offset, log_start: Offset, word: Word) {
        let topic = crate::spool::segment::topic_folder(&self.topic, self.config.load().queue.generation);
        let but = match &word {
            // A word about an earlier hole.
            Ok(Some(to)) if *to <= x => String::new(),
            Ok(Some(to)) => format!("; the word to skip to {to} does not reach that far"),
            Ok(None) => String::new(),
            Err(what) => format!("; the word to skip them cannot be read: {what}"),
        };
        let reason = format!("offsets {x} to {log_start} were removed from the log before they were archived{but}");
        let action = format!(
            "if they are gone for good: `ingestd archive skip {topic} {partition} --to {log_start}`, \
             or set archive.on_gap = \"skip\" and reload"
        );
        let Some(spooled) = self.partitions.get_mut(&partition) else { return };
        spooled.phase = Phase::Gap { log_start, word };
        spooled.cursor = x;
        let epoch = spooled.epoch;
        self.replies.halt(Halt { partition, epoch, reason, action });
    }

    fn ask_skip(&self, partition: Partition) {
        if let Some(spooled) = self.partitions.get(&partition) {
            self.uploader.tell(AskSkip { partition, epoch: spooled.epoch });
        }
    }

    /// Looks whether the operator has said something, in the configuration or in the archive.
    pub(super) fn look_at_gaps(&mut self) {
        let skip = self.config.load().archive.on_gap == OnGap::Skip;
        let ask = self.ticks.is_multiple_of(Self::ASK_SKIP_TICKS);
        if !skip && !ask {
            return;
        }
        let is_gap = |phase: &Phase| matches!(phase, Phase::Gap { .. });
        let gaps: Vec<Partition> = self
            .partitions
            .iter()
            .filter(|(_, spooled)| is_gap(&spooled.phase))
            .map(|(partition, _)| *partition)
            .collect();
        for partition in gaps {
            if skip {
                self.reopen(partition);
            } else {
                self.ask_skip(partition);
            }
        }
    }

    fn reopen(&mut self, partition: Partition) {
        let Some(spooled) = self.partitions.get_mut(&partition) else { return };
        spooled.phase = Phase::Opening { chain_end: None, found: None };
        let epoch = spooled.epoch;
        self.replies.reassign(Reassign { partition, epoch });
    }
}

impl Handler<SkipSaid> for Spooler {
    type Result = ();

    fn handle(&mut self, SkipSaid { partition, epoch, word }: SkipSaid, _: &mut Context<Self>) {
        let Some(spooled) = self.current(partition, epoch) else { return };
        let (x, Phase::Gap { log_start, word: known }) = (spooled.cursor, &spooled.phase) else { return };
        match word {
            Ok(Some(to)) if *log_start <= to => {
                self.gaps.allowed.insert(partition, to);
                self.reopen(partition);
            }
            word if word != *known => {
                let log_start = *log_start;
                self.halt_at_gap(partition, x, log_start, word);
            }
            _ => {}
        }
    }
}
