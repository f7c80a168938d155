//! Starts that are refused: one clear sentence, and the exit status that tells systemd not to try again.

use crate::support::{daemon::Setup, free_port};

const USAGE: i32 = 2;
const CONFIGURATION: i32 = 78;

/// Starts it; the exit status and the words that the message must have.
#[track_caller]
fn assert_refused(setup: Setup, status: i32, words: &[&str]) {
    let (exit, log) = setup.run_to_end();
    assert_eq!(exit, status, "{log}");
    for word in words {
        assert!(log.contains(word), "{word:?} is not in: {log}");
    }
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn roles_that_cannot_work_are_refused_with_the_rule_that_they_break() {
    let refused = |roles: &str, words: &[&str]| assert_refused(Setup::new("roles").roles(roles), CONFIGURATION, words);
    refused("ingestor", &["producer"]);
    refused("ingestor,producer,spooler,uploader", &["spooler", "consumer"]);
    refused("ingestor,producer,consumer", &["consumer"]);
    refused("ingestor,producer,consumer,spooler", &["spooler", "uploader"]);
    refused("worker", &["embedded"]);
    refused("ingest", &["embedded"]);
    refused("ingester", &["ingester", "ingestor"]);
}

#[test]
fn a_key_that_is_unknown_or_not_built_yet_is_refused_with_the_nearest_one() {
    let refused = |key: &str, value: &str, words: &[&str]| {
        assert_refused(Setup::new("keys").set(key, value), CONFIGURATION, words);
    };
    refused("http.lisen", "127.0.0.1:0", &["http.lisen", "http.listen"]);
    refused("http.tls.cert", "x", &["http.tls"]);
    refused("http.auth", "x", &["http.auth"]);
    refused("queue.on_unavailable", "buffer", &["queue.on_unavailable"]);
    refused("batch.max_wait", "soon", &["batch.max_wait", "soon"]);
    refused("disk.max_used_percent", "170", &["disk.max_used_percent", "170"]);
    refused("archive.options.no_such_option", "x", &["no_such_option"]);
    let file = Setup::new("keys").config("[spool]\nmax_agee = \"1s\"\n");
    assert_refused(file, CONFIGURATION, &["config.toml", "spool.max_agee", "spool.max_age"]);
}

#[test]
fn how_times_are_taken_is_one_of_two_words_and_a_duration() {
    for (key, values, words) in [
        ("event.on_invalid_time", &["", "accept", "Receipt", "true"][..], "must be one of receipt, reject"),
        ("event.max_future", &["", "soon", "-1d", "86400"][..], "must be a duration with its unit"),
        ("event.max_future", &["10001years"][..], "must be a duration from 0s to 10000years"),
    ] {
        for value in values {
            let shown = format!("{key} = {value:?}: ");
            assert_refused(Setup::new("time-keys").set(key, value), CONFIGURATION, &["--set: ", &shown, words]);
            let file = format!("[event]\n{} = {value:?}\n", key.trim_start_matches("event."));
            assert_refused(Setup::new("time-keys").config(&file), CONFIGURATION, &["config.toml: ", &shown, words]);
        }
    }
    let number = Setup::new("time-keys").config("[event]\nmax_future = 86400\n");
    assert_refused(number, CONFIGURATION, &["config.toml: event.max_future = 86400: must be a duration with its unit"]);
    let flag = Setup::new("time-keys").config("[event]\non_invalid_time = false\n");
    assert_refused(
        flag,
        CONFIGURATION,
        &["config.toml: event.on_invalid_time = false: must be one of receipt, reject"],
    );
    let nearest = "unknown key; did you mean event.on_invalid_time?";
    assert_refused(Setup::new("time-keys").set("event.on_invalid_times", "reject"), CONFIGURATION, &[nearest]);
    let elsewhere = "unknown key; did you mean event.max_future?";
    assert_refused(Setup::new("time-keys").set("http.max_future", "1d"), CONFIGURATION, &[elsewhere]);
}

#[test]
fn what_would_weaken_a_promise_is_refused_by_name() {
    let kafka = |name: &str| {
        let broker = format!("127.0.0.1:{}", free_port());
        Setup::new(if name == "acks" { "acks" } else { "properties" })
            .set("queue.kind", "kafka")
            .set("queue.kafka.brokers", broker)
            .set(&format!("queue.kafka.properties.{name}"), "1")
    };
    for name in ["acks", "enable.auto.commit", "auto.offset.reset", "group.id"] {
        assert_refused(kafka(name), CONFIGURATION, &[name]);
    }
    // A file that is read only when a client is made.
    let missing = kafka("acks")
        .without("queue.kafka.properties.acks")
        .set("queue.kafka.properties.security.protocol", "ssl")
        .set("queue.kafka.properties.ssl.ca.location", "/nowhere/ca.pem");
    assert_refused(missing, CONFIGURATION, &["ssl.ca.location", "/nowhere/ca.pem"]);
    for option in ["w=1", "journal=false", "readPreference=secondary"] {
        let url = format!("mongodb://127.0.0.1:{}/?{option}", free_port());
        let name = option.split('=').next().expect("a name");
        assert_refused(Setup::new("weak").set("store.kind", "mongodb").set("store.url", url), CONFIGURATION, &[name]);
    }
    let overwriting = Setup::new("overwrite")
        .set("archive.url", "s3://bucket/raw")
        .set("archive.options.conditional_put", "disabled")
        .set("archive.options.endpoint", format!("http://127.0.0.1:{}", free_port()));
    assert_refused(overwriting, CONFIGURATION, &["conditional_put"]);
}

#[test]
fn a_command_line_that_is_not_understood_is_a_usage_error() {
    assert_refused(Setup::new("flag").arguments(&["--no-such-flag"]), USAGE, &["--no-such-flag"]);
    assert_refused(Setup::new("command").arguments(&["send"]), USAGE, &["send"]);
}

#[test]
fn a_configuration_file_that_was_named_must_exist() {
    let (exit, log) = Setup::new("nowhere").arguments(&["--config", "nowhere.toml"]).run_to_end();
    assert!(matches!(exit, USAGE | CONFIGURATION), "{exit}: {log}");
    assert!(log.contains("nowhere.toml"), "{log}");
}

#[test]
fn a_port_that_is_taken_is_named() {
    let first = Setup::new("port").start();
    let address = first.http_address().to_owned();
    let (exit, log) = Setup::new("port-taken").set("http.listen", &address).run_to_end();
    assert!(exit > 0, "{exit}: {log}");
    assert!(log.contains(&address) && log.contains("http.listen"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_second_process_on_the_same_data_directory_is_refused_and_the_first_goes_on() {
    let first = Setup::new("first").start();
    let (exit, log) = Setup::new("second").data(first.data().to_owned()).run_to_end();
    assert!(exit > 0, "{exit}: {log}");
    assert!(log.contains(&first.data().display().to_string()), "it names the directory: {log}");
    assert!(!log.contains("panicked"), "{log}");
    assert_eq!(first.post(None, br#"{"type":"a"}"#).status, 200);
    first.terminate();
}
