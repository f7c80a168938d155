//! A hole that retention tore (4.4): the partition halts until the operator says that it may be left, by
//! `archive.on_gap = "skip"` or by a word in the archive itself (`ingestd archive skip`), which any worker finds.
//!
//! Or the hole is filled, from the segments that a retired machine kept (`ingestd archive drain`).
//!
//! Whoever goes on has its partition assigned anew first: the chain may have grown meanwhile, and going on from the end
//! that was known when it halted would begin a second chain there.

use std::collections::BTreeMap;

use actix::{Context, Handler, Message};

use super::{Phase, Spooler};
use crate::{
    config::OnGap,
    consume::{Halt, Reassign},
    health::SinkName,
    position::{Offset, Partition},
    queue::Epoch,
    upload::AskAboutGap,
};

/// From the uploader: how things stand with this partition's hole.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct GapNews {
    pub partition: Partition,
    pub epoch: Epoch,
    pub news: News,
}

#[derive(Debug, Clone)]
pub enum News {
    /// The chain reaches further than when it was opened: the hole is smaller, or none any more.
    Grown,
    /// What the operator has said.
    Said(Word),
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
    /// How often the archive is asked about a hole, in ticks.
    const ASK_TICKS: u32 = 3;

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
        self.ask(partition);
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

    fn ask(&self, partition: Partition) {
        if let Some(spooled) = self.partitions.get(&partition) {
            self.uploader.tell(AskAboutGap { partition, epoch: spooled.epoch });
        }
    }

    /// Looks whether the operator has said something, in the configuration or in the archive.
    pub(super) fn look_at_gaps(&mut self) {
        let skip = self.config.load().archive.on_gap == OnGap::Skip;
        let ask = self.ticks.is_multiple_of(Self::ASK_TICKS);
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
                self.ask(partition);
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

impl Handler<GapNews> for Spooler {
    type Result = ();

    fn handle(&mut self, GapNews { partition, epoch, news }: GapNews, _: &mut Context<Self>) {
        let Some(spooled) = self.current(partition, epoch) else { return };
        let (x, Phase::Gap { log_start, word: known }) = (spooled.cursor, &spooled.phase) else { return };
        match news {
            News::Grown => self.reopen(partition),
            News::Said(Ok(Some(to))) if *log_start <= to => {
                self.gaps.allowed.insert(partition, to);
                self.reopen(partition);
            }
            News::Said(word) if word != *known => {
                let log_start = *log_start;
                self.halt_at_gap(partition, x, log_start, word);
            }
            News::Said(_) => {}
        }
    }
}
