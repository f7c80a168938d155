//! The stores against real ones, behind their seam.

mod conformance;
mod measured;
mod mongo;
mod rebuilds;

use std::sync::Arc;

use ingestd::internals::store::{Store, StoreOptions, embedded::EmbeddedStore};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio::runtime::Handle;

use conformance::Backend;

struct Embedded(TempDir);

impl Embedded {
    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("store.db")
    }
}

impl Backend for Embedded {
    async fn open(&self, options: StoreOptions) -> Arc<dyn Store> {
        Arc::new(EmbeddedStore::open(&self.path(), options, Handle::current()).unwrap())
    }

    async fn events(&self) -> u64 {
        let connection = Connection::open(self.path()).unwrap();
        connection.query_row("SELECT count(*) FROM event", [], |row| row.get(0)).unwrap()
    }

    async fn buckets(&self) -> u64 {
        let connection = Connection::open(self.path()).unwrap();
        connection.query_row("SELECT count(*) FROM bucket", [], |row| row.get(0)).unwrap()
    }

    async fn measured(&self) -> Vec<(u64, Vec<u8>)> {
        let connection = Connection::open(self.path()).unwrap();
        let mut statement = connection.prepare("SELECT count, measures FROM bucket").unwrap();
        let buckets = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
        buckets.map(Result::unwrap).collect()
    }

    async fn forget_what_is_new(&self, aggregate: &str) {
        let connection = Connection::open(self.path()).unwrap();
        let changed = connection.execute("UPDATE aggregate SET definition = '{}' WHERE name = ?", [aggregate]);
        assert_eq!(changed, Ok(1));
    }
}

mod suite {
    pub use super::{conformance::*, measured::*, rebuilds::*};
}

/// Each of the suite's tests, on each backend.
macro_rules! conformance {
    ($($test:ident)*) => {
        mod embedded {
            $(#[tokio::test]
            async fn $test() {
                super::suite::$test(&super::Embedded(super::TempDir::new().unwrap())).await;
            })*
        }

        mod mongodb {
            $(#[tokio::test(flavor = "multi_thread")]
            async fn $test() {
                let Some(place) = super::mongo::Place::new(stringify!($test)).await else { return };
                super::suite::$test(&place).await;
            })*
        }
    };
}

conformance! {
    a_flush_that_is_repeated_is_fenced_and_changes_nothing
    a_fenced_partition_is_folded_again_behind_its_fences_and_the_others_go_on
    of_two_writers_at_once_one_is_fenced
    fences_are_the_buckets_at_or_beyond_the_committed_offset_with_the_keys_that_were_written
    buckets_of_another_topic_of_the_same_name_are_refused
    rows_are_summed_over_partitions_sorted_and_cut_at_the_limit
    what_is_measured_is_merged_over_flushes_partitions_windows_and_groups
    the_groups_of_a_window_are_those_of_its_partition_and_generation
    an_aggregate_that_is_not_configured_is_refused
    a_definition_of_before_that_has_a_name_with_a_slash_goes_on_as_it_was
    a_changed_definition_is_refused
    bounds_of_times_hold_from_the_offset_on_that_nobody_has_counted
    windows_that_were_removed_are_remembered_and_fences_that_may_be_asked_for_stay
    what_was_measured_is_merged_behind_the_same_fences
    what_another_writer_has_measured_meanwhile_is_neither_lost_nor_measured_twice
    events_are_kept_once_whatever_they_hold
    events_are_found_by_what_they_are_and_paged_newest_first
    a_rehearsal_leaves_nothing
    the_old_buckets_answer_until_the_swap_which_is_one_write
    windows_that_were_not_rebuilt_keep_their_buckets_where_they_can
    a_rebuild_that_is_cancelled_leaves_nothing
    a_partition_that_is_counted_without_the_shadow_is_put_back
}
