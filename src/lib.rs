//! ingestd takes events over HTTP, answers only when they are safe, and carries each exactly once into an archive of
//! raw files and into aggregates that can be queried.
//!
//! Words of ours are explained in `docs/glossary.md`.
//!
//! # The journey of an event
//!
//! ```text
//!  client ── HTTP ──> ingestor ──> producer ──> Kafka topic (or embedded log)
//!                        ^                          │
//!                   503  │                          ├──> consumer ── batches ──> spooler ── segments ──> uploader ──> object store
//!                     watchdog                      │       ^──── archived up to ────┘
//!                                                   └──> consumer ── batches ──> aggregator ── bulk writes ──> MongoDB (or embedded)
//!                                                           ^── aggregated up to ──┘
//! ```
//!
//! 1. [`ingest`]: a request's body, inflated where it has a content coding, is split into events, each checked by [`event`];
//!    nothing is copied or rewritten. What is wrong is refused, or kept as a dead letter.
//! 2. [`log`]: a small request appends them to the log (Kafka's, or the embedded one) where it is handled, others by a
//!    message to the producer. The request's ticket hears when each is durable; only then the client gets its 2xx.
//! 3. [`consume`]: each sink is a consumer group of its own. Batches go to the sink, confirmed positions come back and
//!    are committed. Here the one cursor rule is written down.
//! 4. [`archive`]: the spooler compresses batches into segments; the uploader puts each as a create-only object, in the
//!    order of the partition's chain, and follows what another writer has put. Its tools are for operators, apart from
//!    the daemon: list, cat, verify, skip, drain.
//! 5. [`aggregate`]: the other sink folds batches into buckets and flushes them into the [`store`] behind fences;
//!    records that are no events become dead letters ([`log::dead_letters`]).
//!
//! # Around it
//!
//! - [`app`] builds all of this from the [`config`], downstream first, and stops it in order.
//! - [`supervise`] keeps each actor alive and gives it what all share; [`health`] is what they say of themselves, what
//!   readiness makes of it, and the gate: whether events are taken; [`metrics`] is what they count.
//! - [`watchdog`] closes the gate before the disk is full; [`admin`] is the operators' endpoint; [`reload`] changes the
//!   configuration of a running daemon.
//! - [`http`] is the server under both listeners: connections with deadlines for all that they do, and what pages of other
//!   origins may do. [`openapi`] is what both listeners describe themselves with.
//! - [`tls`] chooses the cryptography, and is what both listeners speak TLS by: certificates, their renewal, and who clients are by
//!   theirs. [`backoff`] the pause before another attempt. [`cli`] is the command line.
//! - [`names`] is what actors, sinks and dependencies are called; [`position`] says where a record stands; [`moment`] is how operators write times; [`vector`] looks at
//!   many bytes of a text together.

// Its readers are those who work on it: it is built with what is private (`./dev docs`).
#![allow(rustdoc::private_intra_doc_links)]

mod admin;
mod aggregate;
mod app;
mod archive;
mod backoff;
pub mod cli;
mod config;
mod consume;
mod data_dir;
mod event;
mod files;
mod health;
mod http;
mod ingest;
#[doc(hidden)]
pub mod internals;
mod log;
mod logging;
mod measure;
mod metrics;
mod moment;
mod names;
mod openapi;
mod panics;
mod position;
mod reload;
mod schema;
mod sqlite;
mod store;
mod supervise;
mod tls;
mod vector;
mod watchdog;
mod window;
