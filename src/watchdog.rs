//! The watchdog: holds the daemon back while the disk is full, notices a changed configuration file, and tells systemd
//! that the daemon lives.
//!
//! Everything that may block (the file system of `data.dir` may be a network's) happens on one thread of its own; the
//! actor asks it for a reading every `disk.check_interval`, never has two questions open, and reports one that is not
//! answered. A disk that fails or hangs leaves the state as it was.

mod disk;
mod systemd;

use std::{
    io,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, Handler, Message, WrapFuture};
use crossbeam_channel::{Receiver, Sender};
use tokio::sync::oneshot;

pub use self::disk::{DiskProbe, DiskState, DiskUsage, FileSystem};
use crate::{
    config::LiveConfig,
    health::{ActorState, Closed, Health},
    metrics::Metrics,
    names::{ActorName, dependency},
};

/// A reading that takes longer is reported; it is still awaited.
const OVERDUE: Duration = Duration::from_secs(5);

/// What the watchdog does to others. Cheap to clone: each incarnation gets its own.
#[derive(Clone)]
pub struct WatchdogHooks {
    /// Told after each reading whether the disk is full, also when that did not change: an actor that was restarted
    /// in between hears of it too. Must not block.
    pub on_disk: Arc<dyn Fn(bool) + Send + Sync>,
    /// Whether the actors that have to live do; while they don't, systemd is not pinged and will restart the daemon.
    /// Must not block.
    pub alive: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Looks whether the configuration's files changed. May block: it runs on the watchdog's thread.
    pub check_file: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// Ends the watchdog, at the end of the stop order.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Stop;

pub struct Watchdog {
    config: LiveConfig,
    health: Health,
    metrics: Arc<Metrics>,
    hooks: WatchdogHooks,
    /// To the thread that reads. Bounded by one: there is never more than one question open.
    questions: Sender<Question>,
    /// When the open question was asked.
    asked: Option<Instant>,
    /// Unknown before the first reading.
    disk: Option<DiskState>,
    told_systemd: String,
}

struct Question(oneshot::Sender<io::Result<DiskUsage>>);

impl Watchdog {
    /// # Errors
    /// The thread that reads cannot be started.
    pub fn new(
        probe: Arc<dyn DiskProbe>,
        config: LiveConfig,
        health: Health,
        metrics: Arc<Metrics>,
        hooks: WatchdogHooks,
    ) -> io::Result<Self> {
        let (questions, asked) = crossbeam_channel::bounded(1);
        let check_file = hooks.check_file.clone();
        // Ends when the actor drops the sender. Not joined: it may hang in the kernel, and has nothing to lose.
        thread::Builder::new().name("watchdog-probe".to_owned()).spawn(move || answer(&asked, &*probe, check_file))?;
        let told_systemd = String::new();
        Ok(Self { config, health, metrics, hooks, questions, asked: None, disk: None, told_systemd })
    }

    /// Asks for a reading, unless one is open, and comes back after `disk.check_interval`.
    fn check(&mut self, ctx: &mut Context<Self>) {
        match self.asked {
            None => self.ask(ctx),
            Some(asked) if asked.elapsed() > OVERDUE => {
                let (dir, seconds) = (self.dir(), asked.elapsed().as_secs());
                let reason = format!("the file system of {dir} has not answered for {seconds} s: look at the mount");
                self.health.dependency(dependency::DISK, Err(reason));
            }
            Some(_) => {}
        }
        self.tell_systemd();
        ctx.run_later(self.config.load().disk.check_interval, Self::check);
    }

    fn ask(&mut self, ctx: &mut Context<Self>) {
        let (answer, answered) = oneshot::channel();
        if self.questions.try_send(Question(answer)).is_err() {
            // The thread panicked in a hook: let the guardian build both anew.
            tracing::error!("the watchdog's thread is gone");
            ctx.stop();
            return;
        }
        self.asked = Some(Instant::now());
        let answered = answered.into_actor(self).map(|answer, watchdog, _| {
            watchdog.asked = None;
            if let Ok(usage) = answer {
                watchdog.take(usage);
            }
        });
        ctx.spawn(answered);
    }

    fn take(&mut self, usage: io::Result<DiskUsage>) {
        match usage {
            Ok(usage) => {
                self.health.dependency(dependency::DISK, Ok(()));
                self.metrics.disk_used_ratio.set(usage.ratio());
                self.judge(usage);
            }
            Err(error) => {
                let reason = format!("the file system of {} cannot be read: {error}", self.dir());
                self.health.dependency(dependency::DISK, Err(reason));
            }
        }
        if let Some(disk) = self.disk {
            (self.hooks.on_disk)(disk == DiskState::Full);
        }
    }

    fn judge(&mut self, usage: DiskUsage) {
        let config = self.config.load();
        let before = self.disk;
        let after = before.unwrap_or(DiskState::Roomy).after(usage, &config.disk);
        self.disk = Some(after);
        match after {
            DiskState::Full => {
                let message = disk::full_message(usage, &config.disk, &self.dir(), config.archive.is_local());
                if before != Some(DiskState::Full) {
                    tracing::error!("disk full: {message}");
                    self.health.actor(ActorName::Watchdog, ActorState::Running, "the disk is full".to_owned());
                }
                self.health.close(Closed::DiskFull, message);
            }
            DiskState::Roomy => {
                if before == Some(DiskState::Full) {
                    let used_percent = usage.ratio() * 100.0;
                    tracing::info!(used_percent, "disk has room again: events are taken and fetched");
                }
                if before != Some(DiskState::Roomy) {
                    self.health.actor(ActorName::Watchdog, ActorState::Running, None);
                    self.health.open(Closed::DiskFull);
                }
            }
        }
    }

    fn tell_systemd(&mut self) {
        let closed = self.health.closed().map(|(_, why)| why);
        let line = systemd::status_line(&self.health.readiness(), closed.as_deref());
        if line != self.told_systemd {
            systemd::status(&line);
            self.told_systemd = line;
        }
    }

    fn dir(&self) -> String {
        self.config.load().data.dir.display().to_string()
    }
}

impl Actor for Watchdog {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.health.actor(ActorName::Watchdog, ActorState::Running, None);
        if let Some(interval) = systemd::ping_interval() {
            ctx.run_interval(interval, |watchdog, _| {
                if (watchdog.hooks.alive)() {
                    systemd::ping();
                } else {
                    tracing::error!("an actor is stuck: systemd is not pinged and will restart the daemon");
                }
            });
        }
        self.check(ctx);
    }
}

impl Handler<Stop> for Watchdog {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Self::Context) {
        ctx.stop();
    }
}

/// The thread: one reading for each question.
fn answer(questions: &Receiver<Question>, probe: &dyn DiskProbe, check_file: Option<Arc<dyn Fn() + Send + Sync>>) {
    for Question(answer) in questions {
        // The actor is gone when nobody listens; then so is its sender, and the loop ends.
        let _ = answer.send(probe.usage());
        if let Some(check_file) = &check_file {
            check_file();
        }
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use arc_swap::ArcSwap;
    use tokio::sync::mpsc;

    use super::*;
    use crate::config::Config;

    #[derive(Default)]
    struct FakeDisk(Mutex<Option<u64>>);

    impl FakeDisk {
        fn set(&self, used_percent: Option<u64>) {
            *self.0.lock() = used_percent;
        }
    }

    impl DiskProbe for FakeDisk {
        fn usage(&self) -> io::Result<DiskUsage> {
            let used = self.0.lock().ok_or_else(|| io::Error::other("no such device"))?;
            Ok(DiskUsage { used, available: 100 - used, inodes: None })
        }
    }

    struct Bench {
        disk: Arc<FakeDisk>,
        health: Health,
        metrics: Arc<Metrics>,
        heard: mpsc::UnboundedReceiver<bool>,
        watchdog: actix::Addr<Watchdog>,
    }

    fn start(used_percent: u64) -> Bench {
        let mut config = Config::default();
        config.disk.check_interval = Duration::from_millis(1);
        let disk = Arc::new(FakeDisk::default());
        disk.set(Some(used_percent));
        let (tell, heard) = mpsc::unbounded_channel();
        let hooks = WatchdogHooks {
            on_disk: Arc::new(move |full| {
                // The test may have heard enough.
                let _ = tell.send(full);
            }),
            alive: Arc::new(|| true),
            check_file: None,
        };
        let (health, metrics) = (Health::default(), Arc::new(Metrics::default()));
        let live = Arc::new(ArcSwap::from_pointee(config));
        let watchdog = Watchdog::new(disk.clone(), live, health.clone(), metrics.clone(), hooks).unwrap();
        Bench { disk, health, metrics, heard, watchdog: watchdog.start() }
    }

    impl Bench {
        async fn hears(&mut self, full: bool) {
            while self.heard.recv().await.expect("the watchdog lives") != full {}
        }
    }

    #[actix_rt::test]
    async fn a_full_disk_closes_the_door_until_there_is_room_again() {
        let mut bench = start(71);
        bench.hears(true).await;
        let (closed, why) = bench.health.closed().unwrap();
        assert_eq!(closed, Closed::DiskFull);
        assert!(why.contains("71.0 %"), "{why}");
        bench.disk.set(Some(64));
        bench.hears(false).await;
        assert_eq!(bench.health.closed(), None);
        assert_eq!(bench.metrics.disk_used_ratio.get(), 0.64);
    }

    #[actix_rt::test]
    async fn a_disk_that_cannot_be_read_is_said_and_leaves_the_door_as_it_was() {
        let mut bench = start(71);
        bench.hears(true).await;
        bench.disk.set(None);
        while bench.health.readiness().dependencies[dependency::DISK].available {
            bench.heard.recv().await.unwrap();
        }
        assert_eq!(bench.health.closed().map(|(closed, _)| closed), Some(Closed::DiskFull));
        assert!(
            bench.health.readiness().dependencies[dependency::DISK]
                .reason
                .as_deref()
                .unwrap()
                .contains("no such device")
        );
    }

    #[actix_rt::test]
    async fn stop_ends_the_watchdog() {
        let mut bench = start(1);
        bench.hears(false).await;
        bench.watchdog.send(Stop).await.unwrap();
        assert!(!bench.watchdog.connected());
    }
}
