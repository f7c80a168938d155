//! Which key a client's value is, where it decides the partition.

use std::collections::BTreeSet;

use crate::support::{PATIENCE, daemon::Setup, eventually, services::services};

#[test]
fn clients_that_are_nobody_share_no_partition_and_a_long_one_has_a_short_key() {
    let Some(services) = services() else { return };
    let daemon = Setup::new("keys")
        .set("queue.kind", "kafka")
        .set("queue.topic", "keys")
        .set("queue.kafka.brokers", services.kafka.address())
        .set("queue.kafka.group", "keys")
        .set("queue.kafka.partitions", "8")
        .start();
    let post = |client: &str| {
        let reply = daemon.post(None, format!(r#"{{"type":"a","client_id":"{client}"}}"#).as_bytes());
        assert_eq!(reply.status, 200, "{}", &reply.body[..reply.body.len().min(300)]);
    };
    // With its key beside it, it would be more than the topic takes.
    let long = "x".repeat(600 << 10);
    post(&long);
    post(&long);
    let nobodies = ["", " ", "00000000-0000-0000-0000-000000000000"];
    eventually("they are spread", PATIENCE, || {
        nobodies.into_iter().for_each(post);
        let used = services.watermarks("keys").into_iter().filter(|(_, start, end)| end > start).count();
        (used >= 4).then_some(())
    });
    let records = services.read_topic("keys");
    let (of_long, of_nobody): (Vec<_>, Vec<_>) =
        records.iter().partition(|record| record.value.as_ref().is_some_and(|value| value.len() > 600 << 10));
    assert!(of_nobody.iter().all(|record| record.key.is_none()));
    let keys: BTreeSet<_> = of_long.iter().map(|record| (record.partition, record.key.clone())).collect();
    let [(_, Some(key))] = &*keys.into_iter().collect::<Vec<_>>() else { panic!("one key, in one partition") };
    assert!(key.starts_with(b"sha256:") && key.len() == 71, "{}", String::from_utf8_lossy(key));
    daemon.terminate();
}
