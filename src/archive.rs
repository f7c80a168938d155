//! The archive: all records of the log as objects in a store, each once, in one chain for each partition.
//!
//! - [`spool`] is the archive's sink: it compresses batches into segments on this machine's disk, and decides where a
//!   partition goes on.
//! - [`upload`] puts each segment as a create-only object, in the order of its partition's chain, and follows what another
//!   writer has put.
//! - [`tools`] are for operators, apart from the daemon: list, cat, verify, skip, drain.

pub mod messages;
pub mod spool;
pub mod tools;
pub mod upload;
