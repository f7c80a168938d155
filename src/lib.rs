//! ingestd takes events over HTTP, answers only when they are safe, and carries each exactly once into an archive of
//! raw files and into aggregates that can be queried.
pub mod app;
pub mod cli;
pub mod config;
pub mod consume;
pub mod dlq;
pub mod health;
pub mod logging;
pub mod metrics;
pub mod position;
pub mod produce;
pub mod queue;
pub mod store;
pub mod supervise;
