//! What keeps rebuilds of aggregates from going on, for those who look at their progress.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// By aggregate; written by the aggregator.
#[derive(Clone, Default)]
pub struct RebuildsWaiting(Arc<Mutex<BTreeMap<String, String>>>);

impl RebuildsWaiting {
    /// It waits, for this reason.
    pub fn waits(&self, aggregate: &str, why: String) {
        self.0.lock().insert(aggregate.to_owned(), why);
    }

    pub fn goes_on(&self, aggregate: &str) {
        self.0.lock().remove(aggregate);
    }

    /// Why it waits, if it does.
    pub fn why(&self, aggregate: &str) -> Option<String> {
        self.0.lock().get(aggregate).cloned()
    }
}
