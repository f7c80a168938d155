#!/usr/bin/env bash
# rdkafka 0.39.0 (crates.io; librdkafka 2.12.1 with it), an idempotent BaseProducer.
#
# librdkafka gives an idempotent producer up for good where the broker does not know the batches before the next one (as after
# an unclean election). From then on each send is refused with `Fatal`. Its documentation sends applications to the error
# callback, which hears of it as `_FATAL`; but `ClientContext::error` is not called with that code, however long the producer
# is polled: an application that waits for the callback to make a new producer refuses everything for ever.
# `client().fatal_error()` tells, when it is asked.
#
# Seen: `the callback heard of Fatal: false; fatal_error(): Some(OutOfOrderSequenceNumber); the next send: Some(KafkaError (Message
# production error: Fatal (Local: Fatal error)))`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
cargo init --quiet --name finding --vcs none
cat >>Cargo.toml <<'TOML'
rdkafka = "=0.39.0"
TOML
cat >src/main.rs <<'RUST'
use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rdkafka::{
    ClientConfig, ClientContext,
    config::FromClientConfigAndContext,
    error::{KafkaError, RDKafkaErrorCode as Code},
    message::DeliveryResult,
    mocking::MockCluster,
    producer::{BaseProducer, BaseRecord, DefaultProducerContext, Producer, ProducerContext},
    types::{RDKafkaApiKey, RDKafkaRespErr},
};

#[derive(Clone, Default)]
struct Heard(Arc<Mutex<Vec<Option<Code>>>>, Arc<Mutex<usize>>);

impl ClientContext for Heard {
    fn error(&self, error: KafkaError, _: &str) {
        self.0.lock().unwrap().push(error.rdkafka_error_code());
    }
}

impl ProducerContext for Heard {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {
        *self.1.lock().unwrap() += 1;
    }
}

fn main() {
    let cluster: MockCluster<'static, DefaultProducerContext> = MockCluster::new(1).unwrap();
    cluster.create_topic("events", 1, 1).unwrap();
    let heard = Heard::default();
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", cluster.bootstrap_servers()).set("enable.idempotence", "true");
    let producer = BaseProducer::from_config_and_context(&config, heard.clone()).unwrap();
    let send = || producer.send(BaseRecord::<[u8], [u8]>::to("events").payload(b"x")).map_err(|(error, _)| error);
    let poll_until = |deliveries: usize| {
        let deadline = Instant::now() + Duration::from_secs(30);
        while *heard.1.lock().unwrap() < deliveries {
            assert!(Instant::now() < deadline, "nothing is delivered");
            producer.poll(Duration::from_millis(100));
        }
    };
    send().unwrap();
    poll_until(1);
    cluster.request_errors(RDKafkaApiKey::Produce, &[RDKafkaRespErr::RD_KAFKA_RESP_ERR_OUT_OF_ORDER_SEQUENCE_NUMBER]);
    send().unwrap();
    poll_until(2);
    let until = Instant::now() + Duration::from_secs(5);
    while Instant::now() < until {
        producer.poll(Duration::from_millis(100));
    }
    let told = heard.0.lock().unwrap().contains(&Some(Code::Fatal));
    let asked = producer.client().fatal_error().map(|(code, _)| code);
    let refused = send().err();
    println!("the callback heard of Fatal: {told}; fatal_error(): {asked:?}; the next send: {refused:?}");
    assert!(!told && asked.is_some() && refused.is_some(), "it is otherwise now");
}
RUST
cargo run --quiet
