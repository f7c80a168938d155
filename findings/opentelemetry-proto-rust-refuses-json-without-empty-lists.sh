#!/usr/bin/env bash
# opentelemetry-proto 0.33.1 (crates.io) with `with-serde`, and opentelemetry-proto 1.45.2 with protobuf 7.36.2 (PyPI) as the
# sender. Needs cargo. Takes a minute.
#
# OTLP's JSON is proto3's, where a field that has its default value is left out, and NaN and Infinity are strings. Python writes an
# empty list so, and an empty map, an entry whose key is the empty string, and a double that is no number; the crate's types,
# whose `serde` is there for this JSON, refuse each of them, and with it the request with all its other events, which are well
# formed. A receiver answers 400 to that, which an exporter does not try again: one event with an empty list costs its batch. The
# other way a NaN is written as `null`, which the crate itself reads as no value.
#
# Seen: `a string: read; empty list: missing field `values`; empty map: missing field `values`; empty key: missing field `key`; NaN:
# invalid type: string "NaN", expected f64; Infinity: invalid type: string "Infinity", expected f64; the crate's own NaN: null, read
# as None`
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
python3 -m venv env
env/bin/pip install --quiet opentelemetry-proto==1.45.2 protobuf==7.36.2
cat >write.py <<'PYTHON'
import json

from google.protobuf.json_format import MessageToJson, Parse
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, ArrayValue, KeyValue, KeyValueList
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord, ResourceLogs, ScopeLogs

bodies = {
    "a string": AnyValue(string_value="a"),
    "empty list": AnyValue(array_value=ArrayValue()),
    "empty map": AnyValue(kvlist_value=KeyValueList()),
    "empty key": AnyValue(kvlist_value=KeyValueList(values=[KeyValue(key="", value=AnyValue(int_value=1))])),
    "NaN": AnyValue(double_value=float("nan")),
    "Infinity": AnyValue(double_value=float("inf")),
}
for name, body in bodies.items():
    records = [LogRecord(body=AnyValue(string_value="well formed")), LogRecord(body=body)]
    request = ExportLogsServiceRequest(resource_logs=[ResourceLogs(scope_logs=[ScopeLogs(log_records=records)])])
    text = MessageToJson(request, indent=None)
    assert Parse(text, ExportLogsServiceRequest()).SerializeToString() == request.SerializeToString()
    print(f"{name}\t{json.dumps(json.loads(text))}")
PYTHON
env/bin/python write.py >requests
cargo init --quiet --name finding --vcs none
cat >>Cargo.toml <<'TOML'
opentelemetry-proto = { version = "=0.33.1", default-features = false, features = ["gen-tonic-messages", "logs", "with-serde"] }
serde_json = "=1.0.145"
TOML
cat >src/main.rs <<'RUST'
use opentelemetry_proto::tonic::{
    collector::logs::v1::ExportLogsServiceRequest,
    common::v1::{AnyValue, any_value::Value},
};

fn main() {
    let requests = std::fs::read_to_string("requests").unwrap();
    let mut said = Vec::new();
    for (name, request) in requests.lines().map(|line| line.split_once('\t').unwrap()) {
        let outcome = match serde_json::from_str::<ExportLogsServiceRequest>(request) {
            Ok(_) => "read".to_owned(),
            Err(error) => error.to_string().split(" at line").next().unwrap().to_owned(),
        };
        said.push(format!("{name}: {outcome}"));
    }
    let own = serde_json::to_value(AnyValue { value: Some(Value::DoubleValue(f64::NAN)) }).unwrap();
    let read: AnyValue = serde_json::from_value(own.clone()).unwrap();
    said.push(format!("the crate's own NaN: {}, read as {:?}", own["doubleValue"], read.value));
    println!("{}", said.join("; "));
    let known = [
        "a string: read",
        "empty list: missing field `values`",
        "empty map: missing field `values`",
        "empty key: missing field `key`",
        "NaN: invalid type: string \"NaN\", expected f64",
        "Infinity: invalid type: string \"Infinity\", expected f64",
        "the crate's own NaN: null, read as None",
    ];
    assert_eq!(said, known, "it is otherwise now");
}
RUST
cargo run --quiet
