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

use actix::{Actor, ActorContext, ActorFutureExt, AsyncContext, Context, WrapFuture};
use crossbeam_channel::{Receiver, Sender};
use sd_notify::NotifyState;
use tokio::sync::oneshot;

use self::disk::DiskState;
pub use self::disk::{DiskUsage, usage};
use crate::{
    health::{ActorState, Reason},
    names::{ActorName, dependency},
    supervise::Env,
};

/// A reading that takes longer is reported; it is still awaited.
const OVERDUE: Duration = Duration::from_secs(5);

/// What the watchdog asks of others and does to them. It outlives the incarnations, each of which has a clone.
#[derive(Clone)]
pub struct WatchdogHooks {
    /// Reads how full the disk is. May block: it runs on the watchdog's thread.
    pub usage: Arc<dyn Fn() -> io::Result<DiskUsage> + Send + Sync>,
    /// Closes the gate while the disk is full.
    pub full: Reason,
    /// Called after each reading with whether the disk is full, also when that did not change: an actor that was
    /// restarted in between learns it too. Must not block.
    pub on_disk: Arc<dyn Fn(bool) + Send + Sync>,
    /// Whether the actors that have to live do; while they don't, systemd is not pinged and will restart the daemon.
    /// Must not block.
    pub alive: Arc<dyn Fn() -> bool + Send + Sync>,
    /// Looks whether the configuration's files changed. May block: it runs on the watchdog's thread.
    pub check_file: Arc<dyn Fn() + Send + Sync>,
}

pub struct Watchdog {
    env: Env,
    hooks: WatchdogHooks,
    /// To the thread that reads. Bounded by one: there is never more than one question open.
    questions: Sender<Question>,
    /// When the open question was asked.
    asked: Option<Instant>,
    /// Unknown before the first reading.
    disk: Option<DiskState>,
    told_systemd: String,
}

type Question = oneshot::Sender<io::Result<DiskUsage>>;

impl Watchdog {
    /// # Errors
    /// The thread that reads cannot be started.
    pub fn new(env: Env, hooks: WatchdogHooks) -> io::Result<Self> {
        let (questions, asked) = crossbeam_channel::bounded(1);
        let (usage, check_file) = (hooks.usage.clone(), hooks.check_file.clone());
        let answer_all = move || answer(&asked, &*usage, &*check_file);
        // Ends when the actor drops the sender. Not joined: it may hang in the kernel, and has nothing to lose.
        thread::Builder::new().name("watchdog-probe".to_owned()).spawn(answer_all)?;
        Ok(Self { env, hooks, questions, asked: None, disk: None, told_systemd: String::new() })
    }

    /// Asks for a reading, unless one is open, and comes back after `disk.check_interval`.
    fn check(&mut self, ctx: &mut Context<Self>) {
        match self.asked {
            None => self.ask(ctx),
            Some(asked) if asked.elapsed() > OVERDUE => {
                let (dir, seconds) = (self.dir(), asked.elapsed().as_secs());
                let reason = format!("the file system of {dir} has not answered for {seconds} s: look at the mount");
                self.env.health.dependency(dependency::DISK, Err(reason));
            }
            Some(_) => {}
        }
        self.tell_systemd();
        ctx.run_later(self.env.config.load().disk.check_interval, Self::check);
    }

    fn ask(&mut self, ctx: &mut Context<Self>) {
        let (answer, answered) = oneshot::channel();
        if self.questions.try_send(answer).is_err() {
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
                self.env.health.dependency(dependency::DISK, Ok(()));
                self.env.metrics.disk_used_ratio.set(usage.ratio());
                self.judge(usage);
            }
            Err(error) => {
                let reason = format!("the file system of {} cannot be read: {error}", self.dir());
                self.env.health.dependency(dependency::DISK, Err(reason));
            }
        }
        if let Some(disk) = self.disk {
            (self.hooks.on_disk)(disk == DiskState::Full);
        }
    }

    fn judge(&mut self, usage: DiskUsage) {
        let config = self.env.config.load();
        let before = self.disk;
        let after = before.unwrap_or(DiskState::Roomy).after(usage, &config.disk);
        let full = (after == DiskState::Full)
            .then(|| disk::full_message(usage, &config.disk, &self.dir(), config.archive.is_local()));
        if before != Some(after) {
            if let Some(message) = &full {
                tracing::error!("disk full: {message}");
            } else if before.is_some() {
                let used_percent = usage.ratio() * 100.0;
                tracing::info!(used_percent, "disk has room again: events are taken and fetched");
            }
            let reason = full.as_ref().map(|_| "the disk is full".to_owned());
            self.env.health.actor(ActorName::Watchdog, ActorState::Running, reason);
        }
        self.hooks.full.set(full);
        self.disk = Some(after);
    }

    fn tell_systemd(&mut self) {
        let closed = self.env.health.gate.closed().map(|(_, why)| why);
        let line = systemd::status_line(&self.env.health.readiness(), closed.as_deref());
        if line != self.told_systemd {
            systemd::notify(NotifyState::Status(&line));
            self.told_systemd = line;
        }
    }

    fn dir(&self) -> String {
        self.env.config.load().data.dir.display().to_string()
    }
}

impl Actor for Watchdog {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        self.env.health.actor(ActorName::Watchdog, ActorState::Running, None);
        if let Some(interval) = systemd::ping_interval() {
            ctx.run_interval(interval, |watchdog, _| {
                if (watchdog.hooks.alive)() {
                    systemd::notify(NotifyState::Watchdog);
                } else {
                    tracing::error!("an actor is stuck: systemd is not pinged and will restart the daemon");
                }
            });
        }
        self.check(ctx);
    }
}

/// The thread: one reading for each question.
fn answer(questions: &Receiver<Question>, usage: &dyn Fn() -> io::Result<DiskUsage>, check_file: &dyn Fn()) {
    for answer in questions {
        // The actor is gone when nobody listens; then so is its sender, and the loop ends.
        let _ = answer.send(usage());
        check_file();
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        config::Config,
        health::{Closed, Health},
    };

    struct Bench {
        /// Of 100; where there is none, the disk cannot be read.
        disk: Arc<Mutex<Option<u64>>>,
        env: Env,
        heard: mpsc::UnboundedReceiver<bool>,
    }

    fn start(used_percent: u64) -> Bench {
        let mut config = Config::default();
        config.disk.check_interval = Duration::from_millis(1);
        let (env, _) = Env::new(config, Health::default());
        let disk = Arc::new(Mutex::new(Some(used_percent)));
        let (tell, heard) = mpsc::unbounded_channel();
        let read = disk.clone();
        let hooks = WatchdogHooks {
            usage: Arc::new(move || {
                let used = read.lock().ok_or_else(|| io::Error::other("no such device"))?;
                Ok(DiskUsage { used, available: 100 - used, inodes: None })
            }),
            full: env.health.gate.reason(Closed::DiskFull),
            // The test may have heard enough.
            on_disk: Arc::new(move |full| _ = tell.send(full)),
            alive: Arc::new(|| true),
            check_file: Arc::new(|| ()),
        };
        Watchdog::new(env.clone(), hooks).unwrap().start();
        Bench { disk, env, heard }
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
        let (closed, why) = bench.env.health.gate.closed().unwrap();
        assert_eq!(closed, Closed::DiskFull);
        assert!(why.contains("71.0 %"), "{why}");
        *bench.disk.lock() = Some(64);
        bench.hears(false).await;
        assert_eq!(bench.env.health.gate.closed(), None);
        assert_eq!(bench.env.metrics.disk_used_ratio.get(), 0.64);
    }

    #[actix_rt::test]
    async fn a_disk_that_cannot_be_read_is_said_and_leaves_the_door_as_it_was() {
        let mut bench = start(71);
        bench.hears(true).await;
        *bench.disk.lock() = None;
        while bench.env.health.readiness().dependencies[dependency::DISK].available {
            bench.heard.recv().await.unwrap();
        }
        assert_eq!(bench.env.health.gate.closed().map(|(closed, _)| closed), Some(Closed::DiskFull));
        assert!(
            bench.env.health.readiness().dependencies[dependency::DISK]
                .reason
                .as_deref()
                .unwrap()
                .contains("no such device")
        );
    }
}
