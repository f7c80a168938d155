//! Panics on demand, so that the tests can have a real daemon's actors fail under load. Only in builds with debug
//! assertions: a release has neither this code nor the variable.
//!
//! Where the environment variable `INGESTD_PANICS` names a folder, an actor panics when a file of its name appears there
//! (`consumer-archive`, as metrics write it). The file is taken away first, so that each gives one panic.

use std::{fs, path::PathBuf, time::Duration};

use actix::{Actor, AsyncContext, Context};

use super::Env;
use crate::names::ActorName;

const FOLDER: &str = "INGESTD_PANICS";
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Builds actors that look for their file, between any two of their messages.
pub(super) fn armed<A, F>(name: ActorName, mut build: F) -> impl FnMut(Env, &mut Context<A>) -> anyhow::Result<A>
where
    A: Actor<Context = Context<A>>,
    F: FnMut(Env, &mut Context<A>) -> anyhow::Result<A>,
{
    let file = std::env::var_os(FOLDER).map(|folder| PathBuf::from(folder).join(name.as_str()));
    move |env, context| {
        if let Some(file) = file.clone() {
            context.run_interval(LOOK_EVERY, move |_, _| {
                assert!(fs::remove_file(&file).is_err(), "{} asked for it", file.display());
            });
        }
        build(env, context)
    }
}
