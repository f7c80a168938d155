//! The logs against real ones, behind their seam.

mod conformance;
mod dead_letters;
mod kafka;
mod reader;

use std::{path::Path, sync::Arc};

use arc_swap::ArcSwap;
use ingestd::internals::{
    config::Config,
    health::Health,
    log::{
        Appender, ByteBudget, SourceHandle,
        dead_letters::{DeadLetterWriter, DeadLetters, Quarantine},
        embedded::{EmbeddedLetters, EmbeddedLog},
    },
    names::SinkName,
};
use tempfile::TempDir;
use tokio::sync::mpsc;

use conformance::{Backend, SourceEvents};

/// The embedded log in a folder of its own.
struct Embedded {
    config: Config,
    log: EmbeddedLog,
    _folder: TempDir,
}

impl Embedded {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = conformance::config();
        Self { log: open(&config, folder.path()), config, _folder: folder }
    }
}

fn open(config: &Config, folder: &Path) -> EmbeddedLog {
    let (escalations, _) = mpsc::unbounded_channel();
    let live = Arc::new(ArcSwap::from_pointee(config.clone()));
    EmbeddedLog::open(folder, vec![SinkName::Archive], live, Health::default(), Arc::default(), escalations).unwrap()
}

impl Backend for Embedded {
    fn config(&self) -> &Config {
        &self.config
    }

    fn appender(&self) -> Box<dyn Appender> {
        Box::new(self.log.clone())
    }

    fn source(&self, budget: &ByteBudget, tell: SourceEvents) -> SourceHandle {
        let live = Arc::new(ArcSwap::from_pointee(self.config.clone()));
        self.log.source(SinkName::Archive, live, budget.clone(), tell).unwrap()
    }

    fn dead_letter_writer(&self) -> Arc<dyn DeadLetterWriter> {
        Arc::new(self.log.clone())
    }

    fn quarantine(&self) -> Arc<dyn Quarantine> {
        Arc::new(self.log.clone())
    }

    fn dead_letters(&self) -> Arc<dyn DeadLetters> {
        Arc::new(EmbeddedLetters::new(self.log.clone(), Arc::new(ArcSwap::from_pointee(self.config.clone()))))
    }
}

/// Each of a suite's tests, on each backend.
macro_rules! on_each_log {
    ($suite:ident, $embedded:ident, $kafka:ident: $($test:ident)*) => {
        mod $embedded {
            $(#[test]
            fn $test() {
                super::$suite::$test(&super::Embedded::new());
            })*
        }

        mod $kafka {
            $(#[test]
            fn $test() {
                let Some(place) = super::kafka::Place::new() else { return };
                super::$suite::$test(&place);
            })*
        }
    };
}

on_each_log! { conformance, embedded_log, kafka_log:
    what_is_appended_is_read_once_and_in_its_order_with_its_key_id_and_time
    what_an_event_has_beside_its_value_is_read_as_headers_behind_its_id
    a_restarted_source_goes_on_at_the_committed_positions
    neither_pauses_nor_seeks_nor_a_spent_budget_lose_or_repeat_a_record
    what_is_assigned_again_goes_on_at_the_committed_positions
    nothing_is_delivered_before_the_sink_says_where_to_begin_nor_while_it_is_held
    a_flush_ends_when_all_that_was_appended_is_durable
}

on_each_log! { dead_letters, embedded_letters, kafka_letters:
    a_letter_is_listed_shown_and_replayed_once
    bytes_come_back_as_they_were_also_in_a_replay
    a_purged_letter_that_is_written_again_stays_away
    a_corrected_value_is_appended_and_one_that_is_no_event_is_refused
    what_was_no_record_is_kept_replayed_and_purged_and_stands_for_none
    a_letter_that_there_is_not_is_said_and_nothing_is_changed
}
