//! Model tests of the archive's chain and of the aggregates' fences: the code that decides in production, driven through
//! random interleavings of three workers of one partition, with crashes, zombies, lost and late answers, retention, old
//! disks and lost heads. What surrounds the decisions (log, group, object store, database, disk) is simulated.
//!
//! Each rule that the protocols need has a test here that takes it out, and sees the model find what breaks.
//!
//! `INGESTD_MODEL_CASES` sets the number of schedules, `INGESTD_MODEL_SEED` the first seed.

mod archive;
mod fences;
mod schedule;
