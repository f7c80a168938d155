//! `ingestd check`: is the configuration right, and does everything that it names answer?

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::{
    app::{self, CheckLine},
    archive::upload::Race,
    config::Sources,
    names::exit,
};

pub(super) fn check(sources: &Sources, connect: bool, thorough: bool, json: bool) -> ExitCode {
    let config = match super::load(sources) {
        Ok(config) => config,
        Err((errors, exit)) => {
            if json {
                super::print(&json!({ "ok": false, "errors": errors.0 }).to_string());
            }
            return exit;
        }
    };
    let dependencies =
        if connect { app::check(config, if thorough { Race::THOROUGH } else { Race::USUAL }) } else { Vec::new() };
    let ok = dependencies.iter().all(|line| line.outcome.is_ok());
    let report = if json { as_json(ok, sources, &dependencies) } else { as_text(sources, &dependencies) };
    let printed = super::print(&report);
    if ok { printed } else { ExitCode::from(exit::FAILURE) }
}

fn as_text(sources: &Sources, dependencies: &[CheckLine]) -> String {
    let mut lines = vec![format!("configuration ok: {sources}")];
    lines.extend(dependencies.iter().map(|CheckLine { what, outcome }| match outcome {
        Ok(found) => format!("{what} ok: {found}"),
        Err(reason) => format!("{what} failed: {reason}"),
    }));
    lines.join("\n")
}

fn as_json(ok: bool, sources: &Sources, dependencies: &[CheckLine]) -> String {
    let dependencies: Vec<Value> = dependencies
        .iter()
        .map(|CheckLine { what, outcome }| {
            let message = outcome.as_ref().unwrap_or_else(|reason| reason);
            json!({ "what": what, "ok": outcome.is_ok(), "message": message })
        })
        .collect();
    json!({ "ok": ok, "configuration": sources.to_string(), "dependencies": dependencies }).to_string()
}
