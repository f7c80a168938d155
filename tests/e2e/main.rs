//! The daemon as its users meet it: the built binary, HTTP, signals, the bucket, the database.
//!
//! `alone` needs nothing; `on_services`, `buffer` and `bad_dependencies` run real services (`tests/services/services.py`), and are
//! skipped loudly where those cannot be had, unless `INGESTD_REQUIRE_SERVICES=1`. One binary, so that the services start
//! once and the large dependencies are linked once.

mod alone;
mod bad_dependencies;
mod buffer;
mod on_services;
mod packaging;
mod queue_kafka;
mod refusals;
mod store_mongo;
mod support;
mod surface;
