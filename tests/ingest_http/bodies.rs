//! Bodies: their codings, their bounds, and what is said of those that are refused as a whole.

use super::*;

#[actix::test]
async fn compressed_bodies_are_taken_as_what_they_inflate_to() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let events: Vec<String> =
        (0..4000).map(|n| format!(r#"{{"type":"a","event_id":"{n}","x":"{}"}}"#, "x".repeat(n % 300))).collect();
    for (coding, count) in [("gzip", 10), ("x-gzip", 4000), ("zstd", 10), ("zstd", 4000), ("br", 10), ("br", 4000)] {
        let body = format!("[{}]", events[..count].join(","));
        let compressed = match coding {
            "zstd" => zstd::encode_all(body.as_bytes(), 3).unwrap(),
            "br" => {
                let mut compressed = Vec::new();
                brotli::BrotliCompress(&mut body.as_bytes(), &mut compressed, &Default::default()).unwrap();
                compressed
            }
            _ => gzip(body.as_bytes()),
        };
        let reply = daemon.post_coded(coding, &compressed).await;
        assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(count)), "{coding}");
        let records = std::mem::take(&mut daemon.log.lock().unwrap().records);
        assert!(records.iter().map(|(_, value, _)| value).eq(&events[..count]), "{coding}");
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn what_a_head_claims_of_a_compressed_body_takes_no_room() {
    const CONNECTIONS: u64 = 20;
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let open = |_| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        let head = "POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Encoding: gzip\r\nContent-Length: 50000\r\n\r\n\x1f";
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let streams: Vec<_> = (0..CONNECTIONS).map(open).collect();
    let held = || daemon.metric("ingestd_in_flight_bytes").parse::<u64>().unwrap();
    // zlib's own memory of each.
    until(|| held() >= CONNECTIONS * (48 << 10)).await;
    assert!(held() <= CONNECTIONS * (56 << 10), "{} bytes", held());
    drop(streams);
    until(|| held() == 0).await;
}

#[actix::test]
async fn what_a_head_claims_of_a_plain_body_takes_no_room() {
    const CONNECTIONS: u64 = 20;
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let open = |_| {
        let mut stream = TcpStream::connect(daemon.address).unwrap();
        let length = HttpConfig::default().max_body.0;
        let head = format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
        stream.write_all(head.as_bytes()).unwrap();
        stream
    };
    let mut streams: Vec<_> = (0..CONNECTIONS).map(open).collect();
    let held = || daemon.metric("ingestd_in_flight_bytes").parse::<u64>().unwrap();
    for pieces in 1..=4 {
        streams.iter_mut().for_each(|stream| stream.write_all(&[b' '; 1024]).unwrap());
        until(|| held() >= CONNECTIONS * pieces * 1024).await;
        assert!(held() <= CONNECTIONS * pieces * 2048, "{} bytes for {pieces} KiB on each", held());
    }
    drop(streams);
    until(|| held() == 0).await;
}

#[actix::test]
async fn limits_hold_for_what_comes_in_and_for_what_comes_out() {
    let limits =
        |bytes| HttpConfig { max_body: ByteSize(bytes), max_in_flight: ByteSize(bytes), ..HttpConfig::default() };
    let body = format!("[{}]", vec![r#"{"type":"a"}"#; 1_000].join(","));
    let length = body.len() as u64;
    let daemon = Daemon::start(Queue::Stores, limits(length));
    // All that may be in flight is its body; it is alone.
    assert_eq!(daemon.post_coded("gzip", &gzip(body.as_bytes())).await.status, 200);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
    assert_eq!(daemon.post_json(&body).await.status, 200);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
    daemon.change_limits(|http| http.max_body = ByteSize(length - 1));
    assert!(daemon.post_coded("gzip", &gzip(body.as_bytes())).await.problem(413).contains("http.max_body"));
    daemon.change_limits(|http| http.max_body = ByteSize(10));
    daemon.post_coded("gzip", &gzip(body.as_bytes())).await.problem(413);
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
}

#[actix::test]
async fn a_coding_that_is_not_taken_is_415_and_says_which_are() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    for coding in ["compress", "gzip, br"] {
        let reply = daemon.post_coded(coding, b"{\"type\":\"a\"}").await;
        assert!(reply.problem(415).contains("gzip, zstd, deflate, br"));
        assert_eq!(reply.header("accept-encoding"), Some("gzip, zstd, deflate, br"));
    }
    let reply = daemon.post_coded("gzip", b"{\"type\":\"a\"}").await;
    assert!(reply.problem(400).contains("gzip"));
    assert_eq!((reply.header("accept-encoding"), reply.json().get("code")), (None, None));
    let reply = daemon.post("application/x-www-form-urlencoded", "{}").await;
    assert!(reply.problem(415).contains("application/json, application/x-ndjson"));
    assert_eq!(reply.header("accept-encoding"), None);
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn what_the_queue_finds_too_large_is_that_events_error() {
    let daemon = Daemon::start(Queue::FindsTooLarge(&[1]), HttpConfig::default());
    let reply = daemon
        .post_json(r#"[{"type":"a","event_id":"1"},{},{"type":"b","event_id":"2"},{"type":"c","event_id":"3"}]"#)
        .await;
    let json = reply.json();
    assert_eq!((reply.status, &json["accepted"], &json["ids"]), (207, &json!(2), &json!(["1", "3"])));
    assert_eq!((&json["errors"][1]["index"], &json["errors"][1]["code"]), (&json!(2), &json!("too_large")));
}

#[actix::test]
async fn limits_hold_and_change_at_the_next_request() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig { max_body: ByteSize(64), ..HttpConfig::default() });
    let body = format!(r#"[{{"type":"a"}},{{"type":"{}"}}]"#, "x".repeat(64));
    daemon.post_json(&body).await.problem(413);
    daemon
        .send(format!(
            "POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n",
            body.len()
        ))
        .await
        .problem(413);
    daemon.change_limits(|http| (http.max_body, http.max_event) = (ByteSize(1 << 20), ByteSize(32)));
    let reply = daemon.post_json(&body).await;
    assert_eq!((reply.status, &reply.json()["errors"][0]["code"]), (207, &json!("too_large")));
    daemon.change_limits(|http| http.max_events = 1);
    daemon.post_json(&body).await.problem(413);
    daemon.change_limits(|http| http.max_in_flight = ByteSize(10));
    let reply = daemon.post_json(&body).await;
    reply.problem(503);
    assert_eq!(reply.header("retry-after"), Some("1"));
}

#[actix::test]
async fn long_bodies_come_through_whole() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let events: Vec<String> =
        (0..4000).map(|n| format!(r#"{{"type":"a","event_id":"{n}","x":"{}"}}"#, "x".repeat(200))).collect();
    let reply = daemon.post_json(&format!("[{}]", events.join(","))).await;
    assert_eq!(
        (reply.status, &reply.json()["accepted"], &reply.json()["ids"][3999]),
        (200, &json!(4000), &json!("3999"))
    );
    assert!(daemon.log.lock().unwrap().records.iter().map(|(_, value, _)| value).eq(&events));
}
