//! A consumer between a source and a sink that only note what they are told.

use parking_lot::Mutex;

use actix::Addr;
use crossbeam_channel::{Receiver, unbounded};
use tokio::sync::mpsc;

use super::*;
use crate::{
    config::Config,
    health::{Health, Readiness},
    log::Epoch,
    metrics::Metrics,
    position::{Offset, TopicIdentity},
};

/// What the sink heard of, by partition.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Assigned(Partition, Epoch),
    Unassigned(Partition, Epoch),
}

struct Listener(mpsc::UnboundedSender<Heard>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<Assign> for Listener {
    type Result = ();

    fn handle(&mut self, assign: Assign, _: &mut Self::Context) {
        let _ = self.0.send(Heard::Assigned(assign.assignment.partition, assign.epoch));
    }
}

impl Handler<Unassign> for Listener {
    type Result = ();

    fn handle(&mut self, Unassign { partition, epoch }: Unassign, _: &mut Self::Context) {
        let _ = self.0.send(Heard::Unassigned(partition, epoch));
    }
}

impl Handler<Batch> for Listener {
    type Result = ();

    fn handle(&mut self, _: Batch, _: &mut Self::Context) {}
}

impl Handler<Drain> for Listener {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {}
}

struct Fixture {
    consumer: Addr<Consumer<Listener>>,
    heard: mpsc::UnboundedReceiver<Heard>,
    source: SourceEvents,
    commands: Receiver<SourceCommand>,
    health: Health,
    metrics: Arc<Metrics>,
}

impl Fixture {
    fn start() -> Self {
        let (sender, heard) = mpsc::unbounded_channel();
        let (env, _) = Env::new(Config::default(), Health::default());
        let (health, metrics) = (env.health.clone(), env.metrics.clone());
        let sink = Slot::default();
        sink.set(Some(Listener(sender).start()));
        let topic = "events".to_owned();
        let (name, queue, fences) = (SinkName::Archive, "kafka", Fences::default());
        let parts = Arc::new(ConsumerParts { name, topic, queue, sink, env, fences });
        let (to_source, commands) = unbounded();
        let events: Mutex<Option<SourceEvents>> = Mutex::default();
        let consumer = Consumer::create(|ctx| {
            Consumer::new(parts, ctx, |tell| {
                *events.lock() = Some(tell);
                Ok(SourceHandle { commands: to_source, thread: std::thread::spawn(|| Ok(())) })
            })
            .unwrap()
        });
        let source = events.into_inner().unwrap();
        Self { consumer, heard, source, commands, health, metrics }
    }

    async fn assign(&mut self, partition: i32) -> Epoch {
        let partition = Partition(partition);
        (self.source)(SourceEvent::Assigned(vec![Assignment {
            partition,
            committed: None,
            log_start: Offset(0),
            log_end: Offset(9),
            identity: TopicIdentity("x".into()),
            holds_all: true,
        }]));
        match self.heard.recv().await {
            Some(Heard::Assigned(assigned, epoch)) if assigned == partition => epoch,
            other => panic!("{other:?}"),
        }
    }

    /// Readiness after everything was handled that was sent before.
    async fn readiness(&self) -> Readiness {
        self.consumer.send(FromSink::Hold(SetHold { hold: Hold::DiskFull, on: false })).await.unwrap();
        self.health.readiness()
    }

    fn lags(&self) -> usize {
        self.metrics.encode().lines().filter(|line| line.starts_with("ingestd_lag_records{")).count()
    }
}

#[actix_rt::test]
async fn what_a_consumer_held_ends_with_it() {
    let mut f = Fixture::start();
    let (first, second) = (f.assign(0).await, f.assign(1).await);
    let (reason, action) = ("an object stands there".to_owned(), "compare it".to_owned());
    f.consumer.send(FromSink::Halt(Halt { partition: Partition(0), epoch: first, reason, action })).await.unwrap();
    assert_eq!((f.readiness().await.halted.len(), f.lags()), (1, 2));

    (f.source)(SourceEvent::Failed("the topic was created anew".to_owned()));
    // Its successor may be given neither.
    assert_eq!(f.heard.recv().await, Some(Heard::Unassigned(Partition(0), first)));
    assert_eq!(f.heard.recv().await, Some(Heard::Unassigned(Partition(1), second)));
    assert_eq!((f.health.readiness().halted, f.lags()), (Vec::new(), 0));
    assert!(f.commands.iter().any(|command| matches!(command, SourceCommand::Close(_))));
}

#[actix_rt::test]
async fn a_hold_that_ends_does_not_make_an_unavailable_queue_look_well() {
    let f = Fixture::start();
    let state = |readiness: Readiness| readiness.actors["consumer-archive"].state;
    (f.source)(SourceEvent::Unavailable("no broker answers".to_owned()));
    for on in [true, false] {
        f.consumer.send(FromSink::Hold(SetHold { hold: Hold::SpoolQuota, on })).await.unwrap();
        assert_eq!(state(f.readiness().await), ActorState::Failing);
    }
    (f.source)(SourceEvent::Available);
    assert_eq!(state(f.readiness().await), ActorState::Running);
}
