use super::*;

#[test]
fn a_minimum_of_in_sync_replicas_that_does_not_fit_is_named() {
    let said = |minimum, replication, now| {
        in_sync("events", minimum, Found { partitions: 1, replication, in_sync: now }).unwrap_or_default()
    };
    assert_eq!([said(1, 1, 1), said(2, 3, 3), said(2, 3, 2)], ["", "", ""]);
    assert!(said(2, 1, 1).contains("brokers before 3.7 take no event"));
    assert!(said(1, 3, 3).contains("set it to 2"));
    assert!(said(2, 2, 1).contains("1 of its 2 replicas in sync"));
}

/// Nobody answers there, and nothing hangs.
fn config() -> Config {
    let mut config = Config::default();
    config.queue.kafka.brokers = "127.0.0.1:1".to_owned();
    config
}

#[test]
fn sources_that_run_at_the_same_time_share_one_and_the_last_one_ends_it() {
    let (topic_watches, config) = (TopicWatches::default(), config());
    let one = topic_watches.share(&config).unwrap();
    let other = topic_watches.share(&config).unwrap();
    assert!(Arc::ptr_eq(&one, &other));
    drop(one);
    let again = topic_watches.share(&config).unwrap();
    assert!(Arc::ptr_eq(&other, &again), "it has not ended");
    let latest = Arc::downgrade(&other.latest);
    drop((other, again));
    assert!(latest.upgrade().is_none(), "its thread has ended");
    assert!(!topic_watches.share(&config).unwrap().is_finished());
}

#[test]
fn an_answer_is_news_once_and_to_those_alone_who_came_before_its_question() {
    let (ask, asked) = bounded(1);
    let latest = Arc::new(Latest::default());
    let began = Instant::now();
    ask.send(()).unwrap();
    drop(ask);
    keep(&asked, &latest, |_| Ok(TopicIdentity("one".into())));
    let topic_watch = TopicWatch { ask: None, latest, thread: None };
    let sighting = topic_watch.sighting(began).unwrap();
    assert_eq!(sighting.identity, TopicIdentity("one".into()));
    assert!(topic_watch.sighting(sighting.asked).is_none());
    assert!(topic_watch.sighting(Instant::now()).is_none());
}
