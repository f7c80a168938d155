//! Clients as the guide has them, through a daemon that refuses, is killed, and is given wrong events.

use std::process::Command;

use crate::support::{program, skip};

#[test]
fn programs_that_send_by_the_lines_of_the_guide_lose_and_double_no_more_than_it_says_and_hear_what_is_wrong() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/senders/run.py");
    let run =
        Command::new("python3").arg(script).args(["--binary", &program(), "light"]).output().expect("python3 runs");
    let said = String::from_utf8_lossy(&[run.stdout, run.stderr].concat()).into_owned();
    if run.status.code() == Some(77) {
        return skip("there is none of the programs that send (curl, node, javac)");
    }
    assert!(run.status.success() && said.contains(" passed, 0 failed"), "{said}");
}
