//! The archive: all records of the log as objects in a store, each once, in one chain for each partition.
//!
//! - [`partition`] decides: what is spooled, what is put next, and where a partition goes on.
//! - [`spool`] is the archive's sink: it compresses batches into segments on this machine's disk, and does what is decided.
//! - [`upload`] puts each segment as a create-only object, and compares what another writer has put there.
//! - [`mod@format`] decides what an object is: how a segment becomes one, and how it is read. [`mod@line`] is a record in it.
//! - [`tools`] are for operators, apart from the daemon: list, cat, verify, skip, drain.

pub mod format;
pub mod line;
pub mod partition;
pub mod spool;
pub mod tools;
pub mod upload;
