//! The aggregates of `measured`, counted anew from the archive.

use std::time::Duration;

use super::{daemon::Daemon, eventually, measured};

fn path(name: &str) -> String {
    format!("/v1/aggregates/{name}/rebuild")
}

/// Has all of them counted anew, from one of the daemons; or joins what is under way.
pub fn begin(daemons: &[&Daemon], within: Duration) {
    for name in measured::NAMES {
        eventually(&format!("the rebuild of {name} begins"), within, || {
            let begins = |daemon: &&Daemon| {
                let reply = daemon.try_ask("POST", &path(name)).ok()?;
                assert!(matches!(reply.status, 200 | 202 | 500..), "{reply:?}");
                (reply.status < 300).then_some(())
            };
            daemons.iter().find_map(begins)
        });
    }
}

/// Until all of them are.
pub fn wait(daemons: &[&Daemon], within: Duration) {
    for name in measured::NAMES {
        eventually(&format!("{name} is rebuilt"), within, || {
            let is_over = |daemon: &&Daemon| {
                let reply = daemon.try_ask("GET", &path(name)).ok()?;
                (reply.status == 200 && reply.json()["state"] == "done").then_some(())
            };
            daemons.iter().find_map(is_over)
        });
    }
}
