use bytes::Bytes;

use super::*;
use crate::{
    health::Health,
    log::{Delivery, NewRecord, Part, Publish, Span, Ticket},
    position::Timestamp,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A configuration whose Kafka is away for good.
fn config(topic: &str) -> Config {
    let mut config = Config::default();
    config.queue.kafka.brokers = "127.0.0.1:1".to_owned();
    config.queue.topic = topic.to_owned();
    config
}

fn open(folder: &Path, config: &Config, health: &Health) -> anyhow::Result<Arc<Buffer>> {
    Buffer::open(folder, Env::new(config.clone(), health.clone()).0)
}

fn append(appender: &dyn Appender, events: usize, size: usize) -> Delivery {
    let (ticket, reply) = Ticket::new(events, Counter::default());
    let value = Part::InBody(Span { start: 0, end: size as u32 });
    let events: Vec<_> =
        (0..events).map(|_| NewRecord { value, key: None, headers: None, assigned_id: None }).collect();
    let body = Bytes::from(vec![b'x'; size]);
    let publish = Publish { body, aside: Bytes::new(), events, received: Timestamp::now(), ticket };
    assert!(appender.append(publish, 0).is_ok());
    reply.blocking_recv().unwrap()
}

fn eventually(what: &str, check: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !check() {
        assert!(std::time::Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn events_wait_across_restarts_and_are_not_left_behind() {
    let (folder, config) = (tempfile::tempdir().unwrap(), config("events"));
    refuse_left_over(folder.path()).unwrap();
    let buffer = open(folder.path(), &config, &Health::default()).unwrap();
    assert!(!buffer.established);
    buffer.prepared().unwrap();
    let appender = buffer.appender().unwrap();
    assert_eq!(append(&*appender, 3, 10).durable, 3);
    appender.flush(PATIENCE).unwrap();
    buffer.close();

    let refusal = refuse_left_over(folder.path()).unwrap_err().to_string();
    assert!(refusal.contains("buffer.db holds 3 accepted events"), "{refusal}");
    let other = self::config("other");
    let refusal = open(folder.path(), &other, &Health::default()).map(drop).unwrap_err().to_string();
    assert!(refusal.contains("holds 3 events for queue.topic = \"events\""), "{refusal}");

    let health = Health::default();
    let buffer = open(folder.path(), &config, &health).unwrap();
    assert!(buffer.established);
    let remark = || health.readiness().dependencies.get(dependency::BUFFER).and_then(|status| status.reason.clone());
    eventually("readiness tells what waits", || remark().is_some_and(|remark| remark.starts_with("3 events wait")));
    buffer.close();
}

#[test]
fn a_full_buffer_refuses_events_and_closes_the_door() {
    let (folder, mut config) = (tempfile::tempdir().unwrap(), config("events"));
    config.queue.embedded.quota = crate::config::ByteSize(1000);
    let health = Health::default();
    let buffer = open(folder.path(), &config, &health).unwrap();
    let appender = buffer.appender().unwrap();
    assert_eq!(append(&*appender, 1, 2000).durable, 1);
    let reason = append(&*appender, 1, 10).refused.unwrap();
    assert!(reason.contains("queue.embedded.quota"), "{reason}");
    eventually("the door is closed", || health.gate.closed().is_some_and(|(_, why)| why.contains("1 events wait")));
    buffer.close();
}

#[test]
fn a_mark_that_the_cursor_has_not_passed_is_doubt() {
    let folder = tempfile::tempdir().unwrap();
    let buffer = open(folder.path(), &config("events"), &Health::default()).unwrap();
    let read = || Position::read(&schema::open_reader(&buffer.log.path).unwrap()).unwrap();
    assert_eq!(read(), Position { at: Offset(0), doubt: None });
    buffer.log.write_meta(DOUBT, Position::mark(Offset(5), Offset(9))).unwrap();
    assert_eq!(read(), Position { at: Offset(5), doubt: Some(Offset(9)) }, "what is before the mark was committed");
    buffer.log.settle_cursor(READER, Offset(9), PATIENCE);
    assert_eq!(read(), Position { at: Offset(9), doubt: None });
    buffer.log.write_meta(DOUBT, "9".to_owned()).unwrap();
    assert!(Position::read(&schema::open_reader(&buffer.log.path).unwrap()).is_err());
    buffer.close();
}
