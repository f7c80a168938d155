//! What the aggregator does for rebuilds: it looks for them, has the history of its partitions read, one at a time, takes the
//! shadows over where the archive ends, and has each that is complete swapped in.
//!
//! A shadow that comes or goes changes what is counted: every partition is then assigned anew, by the new list, and goes on behind
//! its fences as after a restart.

use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use actix::{ActorFutureExt, AsyncContext, Context, WrapFuture};
use tokio::runtime::Handle;

use super::{
    Aggregator, Assigned, State, flush,
    history::{Archived, Ended, Reading},
    limit::limits_of,
    open::Reader,
};
use crate::{
    consume::Reassign,
    event::TimeBounds,
    log::{Assignment, Epoch},
    position::{Offset, Partition, Timestamp},
    store::{
        Counted, Fence, History, Prepared, Store, StoreError,
        rebuild::{Progress, Reached, Rebuild, RebuildId, Swapped},
    },
};

/// How often rebuilds are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// How often what is out of use is looked for.
const TIDY: Duration = Duration::from_secs(10);
/// After the archive, or the store, could not be read.
const PAUSE: Duration = Duration::from_secs(10);
/// A position is noted anew when so many records more are counted.
const NOTED_AGAIN: u64 = 10_000;

/// What is under way.
pub struct Rebuilding {
    /// `None` where there is no archive.
    archived: Option<Arc<dyn Archived>>,
    io: Handle,
    /// All that were under way when the list was made.
    seen: BTreeSet<RebuildId>,
    reading: Option<Underway>,
    /// When what is out of use is looked for again.
    tidy_at: Instant,
    /// After a failure nothing is read for a while.
    not_before: Option<Instant>,
    renewal: Option<Renewal>,
    /// Buckets are being copied that are not rebuilt.
    keeping: bool,
    /// This one's were, and it was so before.
    kept: Option<Rebuild>,
}

/// The partition whose history is read.
struct Underway {
    partition: Partition,
    epoch: Epoch,
    cancelled: Arc<AtomicBool>,
}

impl Underway {
    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }
}

impl Drop for Underway {
    /// With the actor.
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The list is made anew.
struct Renewal {
    /// After this one was swapped in, which was so before anything of it was kept.
    swap: Option<Rebuild>,
}

impl Rebuilding {
    /// `io` is a multi-thread runtime, on whose blocking threads the archive is read.
    pub fn new(archived: Option<Arc<dyn Archived>>, io: Handle) -> Self {
        Self {
            archived,
            io,
            seen: BTreeSet::new(),
            reading: None,
            tidy_at: Instant::now(),
            not_before: None,
            renewal: None,
            keeping: false,
            kept: None,
        }
    }

    /// Nothing is flushed until the list is made anew.
    pub(super) fn is_renewing(&self) -> bool {
        self.renewal.is_some()
    }
}

impl Rebuilding {
    fn may_swap(&self) -> bool {
        !self.keeping && self.not_before.is_none_or(|at| at <= Instant::now())
    }

    fn may_read(&self) -> bool {
        self.reading.is_none() && self.not_before.is_none_or(|at| at <= Instant::now())
    }
}

fn under_way(found: &[Rebuild]) -> impl Iterator<Item = &Rebuild> {
    found.iter().filter(|rebuild| rebuild.finished.is_none())
}

/// Where live counting of a partition has to begin: at its position, or before it where a shadow, or what was one, has less.
/// `log_start` is the first offset that the log has.
async fn first_uncounted(
    store: &dyn Store,
    names: &[String],
    counted: &[Counted],
    partition: Partition,
    position: Offset,
    log_start: Offset,
) -> Result<Offset, StoreError> {
    store.rebuilds().leave_out(partition, position).await?;
    let mut at = position;
    for rebuild in store.rebuilds().find_all(names).await? {
        let is_over = rebuild.finished.is_some();
        if !is_over && shadow_of(&rebuild, counted).is_none() {
            continue;
        }
        match rebuild.partitions.get(&partition) {
            Some(Reached { progress: Progress::Catching(from), .. }) if *from >= log_start || is_over => {
                at = at.min((*from).max(log_start));
            }
            Some(Reached { progress: Progress::Catching(from), records }) => {
                // The log has removed what was archived last: the archive has it.
                let back = Reached { progress: Progress::History(*from), records: *records };
                store.rebuilds().reached(&rebuild.id, partition, back).await?;
            }
            None if !is_over => {
                // It was not there when the rebuild began.
                let progress = match position {
                    Offset(0) => Progress::default(),
                    _ => Progress::History(Offset(0)),
                };
                store.rebuilds().reached(&rebuild.id, partition, Reached { progress, records: 0 }).await?;
            }
            _ => {}
        }
    }
    Ok(at)
}

/// From where on a partition is counted, what fences there are from there on, and what was decided of it.
pub(super) async fn what_is_known(
    store: &dyn Store,
    names: &[String],
    counted: &[Counted],
    assignment: &Assignment,
    bounds: TimeBounds,
) -> Result<(Offset, Vec<Fence>, History), StoreError> {
    let Assignment { partition, log_start, identity, .. } = assignment;
    loop {
        let position = assignment.first_undone();
        let at = first_uncounted(store, names, counted, *partition, position, *log_start).await?;
        let fences = store.fences(*partition, at, identity).await?;
        let end = fences.iter().map(|fence| fence.last_offset.next()).fold(at, Offset::max);
        let history = store.history(*partition, end, bounds).await?;
        // The reading of a history may have come to its end meanwhile.
        if history.progress.iter().all(|progress| progress.counts_all_from(at)) {
            return Ok((at, fences, history));
        }
    }
}

/// The index of what a rebuild fills, where it is counted.
fn shadow_of(rebuild: &Rebuild, counted: &[Counted]) -> Option<usize> {
    // One of another definition is of another configuration.
    let of_it = |counted: &Counted| !counted.is_active() && counted.aggregate.name == rebuild.id.aggregate;
    counted.iter().position(of_it)
}

impl Aggregator {
    /// Compares the definitions with those that the store knows, until that succeeds; then loads what waits for it.
    pub(super) fn prepare(&mut self, attempts: u32, ctx: &mut Context<Self>) {
        let (store, names) = (self.store.clone(), self.names());
        let prepare = async move {
            // What begins in between is seen at the next look.
            let found = store.rebuilds().find_all(&names).await?;
            Ok::<_, StoreError>((found, store.prepare().await?))
        };
        ctx.spawn(prepare.into_actor(self).map(move |prepared, actor, ctx| match prepared {
            Ok((found, Prepared { remarks, counted })) => {
                actor.prepared = true;
                actor.rebuilding.seen = under_way(&found).map(|rebuild| rebuild.id.clone()).collect();
                actor.reader = Reader::new(&actor.config.load(), &counted);
                actor.limits = limits_of(&counted);
                for remark in &remarks {
                    tracing::warn!(
                        store = actor.dependency,
                        remark,
                        "the store is not as it should be, counting goes on"
                    );
                }
                actor.remark = (!remarks.is_empty()).then(|| remarks.join("; "));
                actor.works();
                let assigned: Vec<_> =
                    actor.partitions.iter().map(|(partition, held)| (*partition, held.epoch)).collect();
                for (partition, epoch) in assigned {
                    actor.load(partition, epoch, 0, ctx);
                }
            }
            Err(error) => {
                actor.store_failed(&error);
                ctx.run_later(flush::BACKOFF.pause(attempts + 1), move |actor, ctx| actor.prepare(attempts + 1, ctx));
            }
        }));
    }

    /// What is folded has to wait: for a flush, or until the list is made anew, after which it is read again.
    pub(super) fn is_held_up(&self) -> bool {
        self.flush.is_some() || self.rebuilding.is_renewing()
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.config.load().aggregate.iter().map(|aggregate| aggregate.name.clone()).collect()
    }

    /// Looks for rebuilds that are under way, again and again.
    pub(super) fn look(&mut self, ctx: &mut Context<Self>) {
        let (store, names, tidies) = (self.store.clone(), self.names(), self.rebuilding.tidy_at <= Instant::now());
        let look = async move {
            let found = store.rebuilds().find_all(&names).await?;
            let more = tidies && store.rebuilds().tidy(Timestamp::now()).await?;
            Ok::<_, StoreError>((found, more))
        };
        ctx.spawn(look.into_actor(self).map(move |found, actor, ctx| {
            let goes_on = matches!(found, Ok((_, true)));
            if tidies && matches!(found, Ok((_, false))) {
                actor.rebuilding.tidy_at = Instant::now() + TIDY;
            }
            if let Ok((found, _)) = &found {
                actor.show(found);
            }
            match found.map(|(found, _)| found) {
                Ok(found) if actor.prepared && !actor.rebuilding.is_renewing() => actor.looked(&found, ctx),
                Ok(_) => {}
                Err(error) => tracing::debug!(%error, "rebuilds cannot be looked for now, trying again"),
            }
            ctx.run_later(if goes_on { LOOK / 10 } else { LOOK }, Self::look);
        }));
    }

    fn show(&self, found: &[Rebuild]) {
        for name in self.names() {
            let rebuild = under_way(found).find(|rebuild| rebuild.id.aggregate == name);
            self.metrics.show_rebuild(&name, rebuild.map(|rebuild| (rebuild.behind(), rebuild.records())));
        }
    }

    fn looked(&mut self, found: &[Rebuild], ctx: &mut Context<Self>) {
        if !self.drains.is_empty() {
            // At the stop all stays as it is.
            return;
        }
        if let Some(reading) = &self.rebuilding.reading
            && self.partitions.get(&reading.partition).is_none_or(|assigned| assigned.epoch != reading.epoch)
        {
            reading.cancel();
        }
        let ids: BTreeSet<&RebuildId> = under_way(found).map(|rebuild| &rebuild.id).collect();
        if !ids.into_iter().eq(&self.rebuilding.seen) {
            return self.renew(None, ctx);
        }
        for rebuild in found {
            if rebuild.finished.is_some() {
                self.note_what_is_counted(None, rebuild, ctx);
                continue;
            }
            let Some(shadow) = shadow_of(rebuild, &self.reader.counted) else { continue };
            self.reassign_what_differs(shadow, rebuild);
            if rebuild.is_complete() {
                self.keep_or_swap(rebuild, ctx);
                if self.rebuilding.is_renewing() {
                    return;
                }
                continue;
            }
            self.note_what_is_counted(Some(shadow), rebuild, ctx);
            self.read_history(shadow, rebuild, ctx);
        }
    }

    /// Assigns those partitions anew that are counted otherwise than the store has it: something of an earlier assignment came late.
    fn reassign_what_differs(&mut self, shadow: usize, rebuild: &Rebuild) {
        let mut differ = Vec::new();
        for (partition, reached) in &rebuild.partitions {
            let Some(Assigned { epoch, state: State::Open(open), .. }) = self.partitions.get(partition) else {
                continue;
            };
            let is_as_stored = match (open.progress(shadow), reached.progress) {
                (Progress::History(_), Progress::History(_)) => true,
                (Progress::Catching(counted), Progress::Catching(stored)) => counted == stored,
                (Progress::Catching(_) | Progress::Live(_), Progress::Live(_)) => true,
                _ => false,
            };
            if !is_as_stored {
                differ.push((*partition, *epoch));
            }
        }
        for (partition, epoch) in differ {
            self.reassign(partition, epoch);
        }
    }

    /// What is not rebuilt is copied, then the shadow takes the aggregate's place.
    fn keep_or_swap(&mut self, rebuild: &Rebuild, ctx: &mut Context<Self>) {
        if !self.rebuilding.may_swap() {
            return;
        }
        let kept = self.rebuilding.kept.as_ref().is_some_and(|kept| kept.id == rebuild.id);
        if kept {
            return self.renew(self.rebuilding.kept.clone(), ctx);
        }
        self.rebuilding.keeping = true;
        let (store, noted) = (self.store.clone(), rebuild.clone());
        let keep = async move {
            let mut from = Some(Timestamp(i64::MIN));
            while let Some(at) = from {
                from = store.rebuilds().keep(&noted.id, at).await?;
                // Others get their turn.
                tokio::task::yield_now().await;
            }
            Ok::<_, StoreError>(noted)
        };
        ctx.spawn(keep.into_actor(self).map(|kept, actor, _| {
            actor.rebuilding.keeping = false;
            match kept {
                Ok(noted) => actor.rebuilding.kept = Some(noted),
                Err(error) => {
                    tracing::warn!(%error, "what a rebuild keeps cannot be copied now, trying again");
                    actor.rebuilding.not_before = Some(Instant::now() + PAUSE);
                }
            }
        }));
    }

    /// Notes the partitions whose shadow, or what has been one since they were assigned, has what all others have.
    fn note_what_is_counted(&self, shadow: Option<usize>, rebuild: &Rebuild, ctx: &mut Context<Self>) {
        let mut live = Vec::new();
        for (partition, Reached { progress, records }) in &rebuild.partitions {
            let Some(State::Open(open)) = self.partitions.get(partition).map(|assigned| &assigned.state) else {
                continue;
            };
            let (counted, confirmed) = (shadow.map(|shadow| open.progress(shadow)), open.fold.confirmed());
            let is_new = match progress {
                Progress::History(_) => false,
                Progress::Catching(_) => {
                    counted.is_none_or(|counted| counted == *progress) && confirmed >= open.committed
                }
                // Lest much is read again where the rebuild of other partitions takes long.
                Progress::Live(at) => shadow.is_some() && confirmed.since(*at) >= NOTED_AGAIN,
            };
            if is_new {
                live.push((*partition, Reached { progress: Progress::Live(confirmed), records: *records }));
            }
        }
        if live.is_empty() {
            return;
        }
        let (store, id, is_over) = (self.store.clone(), rebuild.id.clone(), shadow.is_none());
        let note = async move {
            for (partition, reached) in live {
                if is_over {
                    store.rebuilds().settled(&id, partition).await?;
                } else {
                    store.rebuilds().reached(&id, partition, reached).await?;
                }
            }
            Ok::<_, StoreError>(())
        };
        ctx.spawn(note.into_actor(self).map(|noted, _, _| {
            if let Err(error) = noted {
                tracing::debug!(%error, "the progress of a rebuild cannot be stored now, trying again");
            }
        }));
    }

    /// Has the history of a partition read, unless that of one is.
    fn read_history(&mut self, shadow: usize, rebuild: &Rebuild, ctx: &mut Context<Self>) {
        let Some(archived) = self.rebuilding.archived.clone().filter(|_| self.rebuilding.may_read()) else { return };
        let found = rebuild.partitions.iter().find_map(|(partition, reached)| {
            let assigned = self.partitions.get(partition)?;
            let is_open = matches!(assigned.state, State::Open(_));
            (is_open && matches!(reached.progress, Progress::History(_))).then_some((*partition, *reached, assigned))
        });
        let Some((partition, reached, assigned)) = found else { return };
        let (epoch, cancelled) = (assigned.epoch, Arc::new(AtomicBool::new(false)));
        let counted_live = self.health.counted.clone();
        let reading = Reading {
            archived,
            store: self.store.clone(),
            letters: self.dead_letters.clone(),
            config: self.config.load_full(),
            counted: self.reader.counted.clone(),
            limits: self.limits.clone(),
            shadow,
            id: rebuild.id.clone(),
            partition,
            identity: assigned.identity.clone(),
            bounds: self.reader.fields.bounds(),
            io: self.rebuilding.io.clone(),
            position: Box::new(move || counted_live.position(partition)),
            cancelled: cancelled.clone(),
        };
        self.rebuilding.reading = Some(Underway { partition, epoch, cancelled });
        let name = rebuild.id.aggregate.clone();
        let read = self.rebuilding.io.spawn_blocking(move || reading.run(reached));
        ctx.spawn(read.into_actor(self).map(move |ended, actor, _| {
            let ended = ended.unwrap_or_else(|panic| Ended::Failed(panic.to_string()));
            match ended {
                Ended::CaughtUp(_) => {
                    actor.health.rebuilds.goes_on(&name);
                    actor.reassign(partition, epoch);
                }
                Ended::Over | Ended::Fenced => actor.health.rebuilds.goes_on(&name),
                Ended::Failed(why) => {
                    tracing::warn!(aggregate = name, %partition, why,
                        "the history of a rebuild cannot be read now, trying again");
                    actor.health.rebuilds.waits(&name, format!("partition {partition}: {why}"));
                    actor.rebuilding.not_before = Some(Instant::now() + PAUSE);
                }
            }
            actor.rebuilding.reading = None;
        }));
    }

    /// Begins the partition again, from what is durable.
    fn reassign(&mut self, partition: Partition, epoch: Epoch) {
        if self.state(partition, epoch).is_some() {
            self.partitions.remove(&partition);
            self.replies.reassign(Reassign { partition, epoch });
        }
    }

    /// Makes the list anew, once no flush is in flight whose statements mean the present one.
    fn renew(&mut self, swap: Option<Rebuild>, ctx: &mut Context<Self>) {
        self.rebuilding.renewal = Some(Renewal { swap });
        if let Some(retry) = self.retry.take() {
            // What it has is read again.
            ctx.cancel_future(retry);
            self.flush = None;
        }
        if let Some(reading) = &self.rebuilding.reading {
            reading.cancel();
        }
        self.renew_now(ctx);
    }

    /// Does so, if that is wanted and possible.
    pub(super) fn renew_now(&mut self, ctx: &mut Context<Self>) {
        if self.flush.is_some() {
            return;
        }
        let Some(Renewal { swap }) = self.rebuilding.renewal.take() else { return };
        self.prepared = false;
        for (partition, assigned) in std::mem::take(&mut self.partitions) {
            self.replies.reassign(Reassign { partition, epoch: assigned.epoch });
        }
        self.update_hold();
        let store = self.store.clone();
        let aggregate = swap.as_ref().map(|noted| noted.id.aggregate.clone());
        let swapped = async move {
            match &swap {
                Some(noted) => store.rebuilds().swap(&noted.id, noted, Timestamp::now()).await,
                None => Ok(Swapped::Over),
            }
        };
        ctx.spawn(swapped.into_actor(self).map(move |swapped, actor, ctx| {
            match swapped {
                Ok(Swapped::Yes) => {
                    tracing::info!(aggregate, "the aggregate is rebuilt: queries are answered from the new buckets");
                }
                Ok(Swapped::Over) => {}
                Ok(Swapped::NotYet) => actor.rebuilding.kept = None,
                // It may have taken effect, which the list says.
                Err(error) => {
                    tracing::warn!(%error, "a rebuild cannot be swapped in now, trying again");
                    actor.rebuilding.not_before = Some(Instant::now() + PAUSE);
                }
            }
            actor.prepare(0, ctx);
        }));
    }
}
