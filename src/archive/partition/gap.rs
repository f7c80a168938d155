//! A gap that retention tore (4.4): the partition halts until the operator says that it may be left, by
//! `archive.on_gap = "skip"` or by a marker in the archive itself (`ingestd archive skip`), which any worker finds.
//!
//! Or the gap is filled, from the segments that a retired machine kept (`ingestd archive drain`).
//!
//! A partition that goes on is assigned anew first: the chain may have grown meanwhile, and going on from the end
//! that was known when it halted would begin a second chain there.

use super::{Effect, GapAnswer, SkipMarker, Step, Tracked, Transfer, held::Phase};
use crate::{config::OnGap, consume::Halt, position::Offset};

impl Tracked {
    /// Records between the chain's end and the log's start are gone.
    pub(super) fn gap(&mut self, chain_end: Offset, log_start: Offset, step: &mut Step<'_>) {
        let partition = self.partition;
        let from = chain_end.max(self.counted);
        self.counted = log_start.max(self.counted);
        if from < log_start {
            step.then(Effect::Lost { partition, from, to: log_start });
        }
        let allowed = self.skip_allowed.take().is_some_and(|to| log_start <= to);
        if allowed || step.moment.on_gap == OnGap::Skip {
            step.then(Effect::Skipped { partition, from: chain_end, to: log_start });
            self.begin(chain_end, log_start, step);
        } else {
            self.halt_at_gap(chain_end, log_start, Ok(None), step);
            self.ask_about_gap(step);
        }
    }

    fn halt_at_gap(&mut self, chain_end: Offset, log_start: Offset, marker: SkipMarker, step: &mut Step<'_>) {
        let but = match &marker {
            // A marker about an earlier gap.
            Ok(Some(to)) if *to <= chain_end => String::new(),
            Ok(Some(to)) => format!("; the word to skip to {to} does not reach that far"),
            Ok(None) => String::new(),
            Err(what) => format!("; the word to skip them cannot be read: {what}"),
        };
        let reason =
            format!("offsets {chain_end} to {log_start} were removed from the log before they were archived{but}");
        let action = format!(
            "if they are gone for good: `ingestd archive skip {} {} --to {log_start}`, \
             or set archive.on_gap = \"skip\" and reload",
            step.rules.topic_folder, self.partition
        );
        let Some(held) = &mut self.held else { return };
        (held.phase, held.cursor) = (Phase::Gap { log_start, marker }, chain_end);
        step.then(Effect::Halt(Halt { partition: self.partition, epoch: held.epoch, reason, action }));
    }

    /// While segments of ours are on their way, the chain grows by them, and nothing is asked.
    fn ask_about_gap(&self, step: &mut Step<'_>) {
        let Some(held) = self.held.as_ref().filter(|held| held.putting.is_none()) else { return };
        if let Some(end) = held.chain_end {
            step.transfer(Transfer::AskAboutGap { partition: self.partition, epoch: held.epoch, end });
        }
    }

    pub(super) fn gap_tick(&mut self, ask: bool, step: &mut Step<'_>) {
        let at_gap = self.held.as_ref().is_some_and(|held| matches!(held.phase, Phase::Gap { .. }));
        match step.moment.on_gap {
            OnGap::Skip if at_gap => self.reopen(step),
            OnGap::Halt if at_gap && ask => self.ask_about_gap(step),
            OnGap::Skip | OnGap::Halt => {}
        }
    }

    fn reopen(&mut self, step: &mut Step<'_>) {
        let Some(held) = &mut self.held else { return };
        held.phase = Phase::Opening { found: None };
        step.then(Effect::Reassign(held.reassign()));
    }

    pub(super) fn gap_answered(&mut self, answer: GapAnswer, step: &mut Step<'_>) {
        let Some(held) = &self.held else { return };
        let Phase::Gap { log_start, marker: known } = &held.phase else { return };
        let (chain_end, log_start) = (held.cursor, *log_start);
        match answer {
            GapAnswer::Grown => self.reopen(step),
            GapAnswer::Skip(Ok(Some(to))) if log_start <= to => {
                self.skip_allowed = Some(to);
                self.reopen(step);
            }
            GapAnswer::Skip(marker) if marker != *known => {
                self.halt_at_gap(chain_end, log_start, marker, step);
            }
            GapAnswer::Skip(_) => {}
        }
    }
}
