//! Clients as users have them.

use std::{
    io,
    net::{Shutdown, TcpListener, TcpStream},
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use crate::support::{PATIENCE, daemon::Setup, skip};

/// Hands connections on to `address`, and counts them.
fn relay(address: &str) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let own = listener.local_addr().expect("it is bound").to_string();
    let (address, connections) = (address.to_owned(), Arc::new(AtomicUsize::new(0)));
    let counted = connections.clone();
    // It ends with the process.
    thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            counted.fetch_add(1, Ordering::AcqRel);
            let Ok(server) = TcpStream::connect(&address) else { return };
            for (mut from, mut to) in [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))]
                .into_iter()
                .filter_map(|(from, to)| Some((from.ok()?, to.ok()?)))
            {
                let _ = from.set_nodelay(true);
                thread::spawn(move || io::copy(&mut from, &mut to).and_then(|_| to.shutdown(Shutdown::Write)));
            }
        }
    });
    (own, connections)
}

#[test]
fn javas_client_asks_for_http_2_each_time_and_all_its_posts_go_over_one_connection() {
    const POSTS: u32 = 2_000;
    if !Command::new("javac").arg("-version").output().is_ok_and(|output| output.status.success()) {
        return skip("there is no JDK (javac) to run a Java client with");
    }
    let daemon = Setup::new("java").start();
    let (address, connections) = relay(daemon.http_address());
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/e2e/clients/Posts.java");
    let output = Command::new("timeout")
        .args([&PATIENCE.as_secs().to_string(), "java", "-XX:TieredStopAtLevel=1", "-Xmx128m", source])
        .args([&format!("http://{address}/v1/events"), &POSTS.to_string()])
        .stdin(Stdio::null())
        .output()
        .expect("coreutils are installed");
    let said = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.0.trim(), format!("{POSTS} taken, failure: none"), "{said:?}");
    assert_eq!(connections.load(Ordering::Acquire), 1);
    assert_eq!(daemon.metric("ingestd_events_accepted_total"), Some(f64::from(POSTS)));
    daemon.terminate();
}
