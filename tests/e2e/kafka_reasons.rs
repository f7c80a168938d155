//! Why Kafka is out of reach, in the words of `check --connect` and of readiness: certificates, passwords, protocols.

use std::{
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{PATIENCE, daemon::Setup, eventually, free_port, program, scratch, services::kafka_with, skip};

const PASSWORD: &str = "changeit";

/// A key with its certificate, for this name; the certificate also alone, in PEM.
fn certificate(folder: &Path, name: &str, subject: &str) -> bool {
    let store = folder.join(name).with_extension("p12");
    let keytool = |arguments: &[&str]| {
        let output = Command::new("keytool").args(arguments).args(["-alias", name, "-keystore"]).arg(&store).output();
        output.is_ok_and(|output| {
            assert!(output.status.success(), "{output:?}");
            true
        })
    };
    let names = format!("SAN={subject}");
    keytool(&["-genkeypair", "-keyalg", "EC", "-dname", "CN=kafka", "-ext", &names, "-storepass", PASSWORD])
        && keytool(&[
            "-exportcert",
            "-rfc",
            "-storepass",
            PASSWORD,
            "-file",
            folder.join(name).with_extension("pem").to_str().expect("target's path is UTF-8"),
        ])
}

#[test]
fn who_cannot_reach_kafka_is_told_why() {
    let folder = tempfile::tempdir_in(scratch()).expect("target can be written to");
    let folder = folder.path();
    if !certificate(folder, "broker", "ip:127.0.0.1") {
        return skip("there is no keytool (a JRE has it) to make certificates with");
    }
    assert!(certificate(folder, "elsewhere", "dns:elsewhere.example") && certificate(folder, "other", "ip:127.0.0.1"));
    let file = |name: &str| folder.join(name).display().to_string();
    let [tls, elsewhere, mutual, sasl] = [(); 4].map(|()| free_port());
    let store = |listener: &str, name: &str| {
        format!(
            "listener.name.{listener}.ssl.keystore.location={}\nlistener.name.{listener}.ssl.keystore.password={PASSWORD}\n\
             listener.name.{listener}.ssl.keystore.type=PKCS12\n",
            file(&format!("{name}.p12"))
        )
    };
    let more = format!(
        "TLS://127.0.0.1:{tls},ELSEWHERE://127.0.0.1:{elsewhere},MUTUAL://127.0.0.1:{mutual},SASL://127.0.0.1:{sasl}"
    );
    let properties = folder.join("more.properties");
    let text = format!(
        "listeners=PLAINTEXT://127.0.0.1:{{broker}},CONTROLLER://127.0.0.1:{{controller}},{more}\n\
         advertised.listeners=PLAINTEXT://127.0.0.1:{{broker}},{more}\n\
         listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,TLS:SSL,ELSEWHERE:SSL,MUTUAL:SSL,\
         SASL:SASL_PLAINTEXT\n\
         {}{}{}\
         listener.name.mutual.ssl.client.auth=required\n\
         listener.name.mutual.ssl.truststore.location={}\n\
         listener.name.mutual.ssl.truststore.password={PASSWORD}\n\
         listener.name.mutual.ssl.truststore.type=PKCS12\n\
         listener.name.sasl.sasl.enabled.mechanisms=PLAIN\n\
         listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required \
         user_ingestd=\"right\";\n",
        store("tls", "broker"),
        store("elsewhere", "elsewhere"),
        store("mutual", "broker"),
        file("other.p12"),
    );
    std::fs::write(&properties, text).expect("target can be written to");
    let Some(kafka) = kafka_with(&properties) else { return };
    let plain = kafka.address();

    let at = |port: u16| format!("127.0.0.1:{port}");
    let (right, other, of_elsewhere) = (file("broker.pem"), file("other.pem"), file("elsewhere.pem"));
    let ssl = ("security.protocol", "ssl");
    let plain_text =
        [("security.protocol", "sasl_plaintext"), ("sasl.mechanism", "PLAIN"), ("sasl.username", "ingestd")];
    /// What it is, where it asks, with which properties of librdkafka, and a word of what is said.
    type Case<'a> = (&'a str, String, Vec<(&'a str, &'a str)>, &'a str);
    let cases: &[Case] = &[
        ("another CA", at(tls), vec![ssl, ("ssl.ca.location", &other)], "certificate verify failed"),
        ("an unknown CA", at(tls), vec![ssl], "certificate verify failed"),
        ("another host", at(elsewhere), vec![ssl, ("ssl.ca.location", &of_elsewhere)], "another host name"),
        ("no certificate of its own", at(mutual), vec![ssl, ("ssl.ca.location", &right)], "ssl.certificate.location"),
        (
            "TLS at a plain port",
            plain.clone(),
            vec![ssl, ("ssl.ca.location", &right)],
            "connecting to a PLAINTEXT broker listener",
        ),
        ("plain at a TLS port", at(tls), vec![], "security.protocol"),
        (
            "a wrong password",
            at(sasl),
            [&plain_text[..], &[("sasl.password", "wrong")]].concat(),
            "Authentication failed",
        ),
        ("nobody there", at(free_port()), vec![], "Connection refused"),
    ];
    // Each waits for its question's time to be over.
    thread::scope(|scope| {
        let checks = cases
            .iter()
            .map(|(case, address, properties, word)| (case, word, scope.spawn(move || check(address, properties))));
        for (case, word, running) in checks.collect::<Vec<_>>() {
            let said = running.join().expect("it does not panic");
            eprintln!("{case}: {said}");
            assert!(said.contains(word), "{case}: {said}");
        }
    });
    let said = check(&at(sasl), &[&plain_text[..], &[("sasl.password", "right")]].concat());
    assert!(said.contains("is reachable"), "{said}");

    // Readiness keeps the reason for as long as that lasts.
    let wrong = [&plain_text[..], &[("sasl.password", "wrong")]].concat();
    let setup = Setup::new("reasons").set("queue.kind", "kafka").set("queue.kafka.brokers", at(sasl));
    let named =
        |setup: Setup, (name, value): &(&str, &str)| setup.set(&format!("queue.kafka.properties.{name}"), value);
    let daemon = wrong.iter().fold(setup, named).spawn();
    let reason = || Some(daemon.try_readiness()?["dependencies"]["kafka"]["reason"].as_str()?.to_owned());
    let is_told = |reason: String| reason.contains("Authentication failed");
    eventually("the reason", PATIENCE, || reason().filter(|reason| is_told(reason.clone())));
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        let reason = reason().expect("it is away");
        assert!(is_told(reason.clone()), "{reason}");
        thread::sleep(Duration::from_millis(200));
    }
    daemon.kill();
}

/// What `check --connect` says of Kafka.
fn check(address: &str, properties: &[(&str, &str)]) -> String {
    let mut command = Command::new(program());
    command.args(["check", "--connect", "--json", "--roles", "ingest", "--set", "queue.kind=kafka"]);
    command.args(["--set", &format!("queue.kafka.brokers={address}")]).stdin(Stdio::null());
    for (name, value) in properties {
        command.args(["--set", &format!("queue.kafka.properties.{name}={value}")]);
    }
    let output = command.output().expect("the program runs");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    report["dependencies"][0]["message"].as_str().unwrap_or_else(|| panic!("{output:?}")).to_owned()
}
