//! Bodies as programs send them that are not ours: compressed, in lines, in texts one behind the other, nearly right.

use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::{archive::Archive, daemon::Setup, skip};

#[test]
fn bodies_as_pythons_programs_and_shippers_send_them_are_taken() {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        return skip("there is no python3 to send bodies with");
    }
    let daemon = Setup::new("bodies").start();
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/bodies/post.py");
    let run = Command::new("timeout")
        .args(["120", "python3", script, daemon.http_address()])
        .stdin(Stdio::null())
        .output()
        .expect("coreutils are installed");
    assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stderr));
    let said = String::from_utf8(run.stdout).expect("it is JSON");
    let answers: Vec<(String, u16, Value)> =
        said.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect();
    let mut accepted = 0;
    let mut expect = answers.into_iter();
    for (way, status, count) in [
        ("gzip", 200, 3),
        ("large", 200, 5_000),
        // A line behind a line, without commas, is one element, and no JSON.
        ("members", 400, 0),
        ("members of lines", 200, 3),
        ("zlib", 200, 3),
        ("raw deflate", 200, 3),
        ("pieces", 200, 3),
        ("application/ndjson", 200, 3),
        ("application/jsonl", 200, 3),
        ("application/x-jsonlines; charset=utf-8", 200, 3),
        ("json_stream", 200, 3),
        ("json_stream in gzip", 200, 3),
        ("NaN", 207, 2),
        ("utf-8-sig", 200, 3),
        ("utf-16", 400, 0),
        ("us-ascii", 200, 3),
        ("nothing", 400, 0),
        ("gzip of nothing", 400, 0),
    ] {
        let (name, got, answer) = expect.next().unwrap_or_else(|| panic!("nothing for {way}"));
        assert_eq!((name.as_str(), got), (way, status), "{answer:.300}");
        if count > 0 {
            assert_eq!(answer["accepted"], json!(count), "{way}");
        }
        if way == "NaN" {
            assert_eq!(answer["errors"][0]["index"], 1, "{answer}");
            assert!(answer["errors"][0]["message"].as_str().is_some_and(|words| words.contains("NaN")), "{answer}");
        }
        accepted += count;
    }
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(f64::from(accepted)));
    daemon.wait_read(accepted as usize);
    daemon.terminate();
    let mut archive = Archive::local(&daemon.data().join("archive"));
    archive.refresh();
    let ids: Vec<String> = archive
        .lines()
        .map(|line| {
            let value = line.value.as_deref().expect("each stands as it came");
            let event: Value = serde_json::from_slice(value).expect("it is JSON");
            event["event_id"].as_str().expect("each has one").to_owned()
        })
        .collect();
    assert_eq!(ids.len(), accepted as usize);
    assert!(
        ids.iter()
            .filter(|id| id.starts_with("large-"))
            .eq(&(0..5_000).map(|n| format!("large-{n}")).collect::<Vec<_>>())
    );
    for id in ["gzip-2", "members-1", "zlib-0", "raw-2", "pieces-2", "stream-1", "gzipped-2", "nan-1", "mark-2"] {
        assert_eq!(ids.iter().filter(|stored| *stored == id).count(), 1, "{id}");
    }
}
