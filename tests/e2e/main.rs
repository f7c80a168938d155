//! The daemon as its users meet it: the built binary, HTTP, signals, the bucket, the database.
//!
//! `alone` needs nothing, `clients` a JDK, `browser` and `dashboard` a Chromium, `openapi` a package of Python's, `cloudevents` those of two
//! SDKs; `on_services`, `buffer` and `bad_dependencies` run real services (`tests/services/services.py`), and are skipped
//! loudly where those cannot be had, unless `INGESTD_REQUIRE_SERVICES=1`. One binary, so that the services start once and the
//! large dependencies are linked once.

mod aggregates;
mod alone;
mod answers;
mod archive_replay;
mod archive_tools;
mod auth;
mod bad_dependencies;
mod bodies;
mod browser;
mod buffer;
mod clients;
mod cloudevents;
mod dashboard;
mod dead_letters;
mod dev_script;
mod doors;
mod events_query;
mod groups_without_end;
mod hostile;
mod kafka_away;
mod kafka_clock;
mod kafka_group;
mod kafka_reasons;
mod kafka_topic;
mod keys;
mod log;
mod mongodb_operators;
mod object_stores;
mod on_services;
mod openapi;
mod operators;
mod packaging;
mod process;
mod rates;
mod reading;
mod rebuilds;
mod refusals;
mod senders;
mod sentences;
mod sources;
mod store;
#[allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod surface;
mod times;
mod tls;
mod traces;
mod types;
