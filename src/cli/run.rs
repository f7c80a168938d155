//! `ingestd [run]`: the daemon.

use std::process::ExitCode;

use crate::{app, config::Sources};

pub(super) fn run(sources: Sources) -> ExitCode {
    match super::load(&sources) {
        Ok(config) => app::run(config, sources),
        Err((_, exit)) => exit,
    }
}
