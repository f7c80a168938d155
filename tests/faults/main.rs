//! Nothing lost, nothing twice, whatever fails: real services, a real daemon, and faults (docs/faults.md).
//!
//! `drawn` plays a schedule that a seed decides, over several processes under load: `INGESTD_FAULTS_SEEDS=1,2,3` and
//! `INGESTD_FAULTS_MINUTES=8` make it longer. The others are single faults that need a stage of their own.

mod brokers;
mod clock;
mod disk;
mod drawn;
mod load;
mod nolinks;
mod panics;
mod power;
mod proxy;
mod readonly;
mod recovery;
mod replica_set;
mod report;
mod restarts;
mod schedule;
#[allow(dead_code, unused_imports, reason = "each test binary uses a part of it")]
#[path = "../support/mod.rs"]
mod support;
mod temporary;
mod topics;
mod unstorable;
mod wire;
mod world;
mod zombies;
