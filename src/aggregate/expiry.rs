//! What is counted otherwise than a record says: reports of it, and the removal of windows that are kept no longer.

use std::time::Duration;

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};

use super::{Aggregator, State, flush::Statements, open::Reported};
use crate::{
    metrics::{AggregateLabel, Lag, ReasonLabel},
    names::SinkName,
    position::{Partition, Timestamp},
    store::{Removal, StoreError},
};

impl Aggregator {
    /// How often windows are looked for that are kept no longer, and when some were found.
    pub(super) const EXPIRY: Duration = Duration::from_secs(10);
    const EXPIRY_GOES_ON: Duration = Duration::from_millis(100);

    pub(super) fn report(&self, partition: Partition, Statements { others, reported, .. }: &Statements) {
        let label = |index: usize| AggregateLabel {
            aggregate: self.reader.counted.get(index).map_or_else(String::new, |it| it.aggregate.name.clone()),
        };
        if let Some(Reported { by_receipt, expired }) = reported.get(&partition) {
            for (reason, records) in by_receipt {
                self.metrics.events_by_receipt.get_or_create(&ReasonLabel { reason }).inc_by(*records);
            }
            for (index, records) in expired {
                self.metrics.events_expired.get_or_create(&label(*index)).inc_by(*records);
            }
        }
        for ((_, index), records) in others.iter().filter(|((of, _), _)| *of == partition) {
            self.metrics.events_in_other.get_or_create(&label(*index)).inc_by(*records);
        }
    }

    /// Removes windows that are kept no longer, some at a time. While records wait to be counted, the present is that of the
    /// last one that was: they were received while their windows were kept.
    pub(super) fn expire(&mut self, ctx: &mut Context<Self>) {
        // A shadow's windows are removed when it has taken the other one's place: its index is another's when its rebuild is over.
        let active = self.reader.counted.iter().filter(|counted| counted.is_active()).count();
        let mut removals = Vec::new();
        let waiting = |partition: Partition, lags: &[Lag]| {
            lags.iter().any(|lag| lag.sink == SinkName::Aggregate && lag.partition == partition && lag.records > 0)
        };
        let (now, lags) = (Timestamp::now(), self.metrics.lags());
        for (partition, assigned) in &mut self.partitions {
            let State::Open(open) = &mut assigned.state else { continue };
            let present =
                if waiting(*partition, &lags) { open.received().map_or(Timestamp(0), |it| it.min(now)) } else { now };
            let kept_from: Vec<_> = self.reader.grouping.kept_from(present).take(active).collect();
            for (aggregate, before) in
                kept_from.iter().enumerate().filter_map(|(index, before)| Some((index, (*before)?)))
            {
                // Records of the windows are not counted from here on.
                open.remove_before(aggregate, before);
                let (partition, committed) = (*partition, open.fold.confirmed());
                removals.push(Removal { aggregate, partition, before, committed });
            }
        }
        let store = self.store.clone();
        let remove = async move {
            let mut more = false;
            for removal in &removals {
                more |= store.remove(removal).await?;
            }
            Ok::<_, StoreError>(more)
        };
        ctx.spawn(remove.into_actor(self).map(|removed, _, ctx| {
            let pause = match removed {
                Ok(true) => Self::EXPIRY_GOES_ON,
                Ok(false) => Self::EXPIRY,
                Err(error) => {
                    tracing::debug!(%error, "windows that are kept no longer cannot be removed now, trying again");
                    Self::EXPIRY
                }
            };
            ctx.run_later(pause, Self::expire);
        }));
    }
}
