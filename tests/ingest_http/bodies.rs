//! Bodies: their codings, their bounds, and what is said of those that are refused as a whole.

use super::*;

/// The status, the code and the sentence of each answer to a body that is refused as a whole.
#[actix::test]
async fn each_refusal_of_a_body_is_a_sentence_that_says_what_where_and_what_to_do() {
    const TAKEN: &str = "send one of application/json, application/x-ndjson, application/ndjson, application/jsonl, \
                         application/x-jsonlines, application/cloudevents+json, application/cloudevents-batch+json, in UTF-8 (or with the \
                         headers of a CloudEvent, any that its data has)";
    let daemon =
        Daemon::start(Queue::Stores, HttpConfig { max_body: ByteSize(200), max_events: 2, ..HttpConfig::default() });
    let event = br#"{"type":"a"}"#.as_slice();
    let mut wrong = gzip(event);
    let at = wrong.len() - 8;
    wrong[at] ^= 1;
    let cut = &gzip(event)[..20];
    let zstd_window = [0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 1, 0, 0];
    let zstd_dictionary = [0x28, 0xb5, 0x2f, 0xfd, 0x21, 7, 0, 1, 0, 0];
    let invalid = Some("invalid_json");
    let row = |fields: &'static str, body: &[u8], status: u16, code: Option<&'static str>, sentence: &str| {
        (fields, body.to_vec(), status, code, sentence.to_owned())
    };
    for (fields, body, status, code, sentence) in [
        row("Content-Type: text/plain", event, 415, None, &format!("this Content-Type is not taken: {TAKEN}")),
        row(
            "Content-Type: application/json\r\nContent-Type: application/json",
            event,
            415,
            None,
            &format!("more than one Content-Type: {TAKEN}"),
        ),
        row(
            "Content-Type: application/json; charset=latin1",
            event,
            415,
            None,
            &format!("the charset of this Content-Type is not taken: {TAKEN}"),
        ),
        row(
            "Content-Encoding: compress",
            event,
            415,
            None,
            "this Content-Encoding is not taken: send the body with gzip, zstd, deflate, br, or as it is",
        ),
        row(
            "Content-Encoding: gzip, br",
            event,
            415,
            None,
            "more than one Content-Encoding: send the body with one of gzip, zstd, deflate, br, or as it is",
        ),
        row(
            "Content-Encoding: zstd",
            &zstd_window,
            415,
            None,
            "the body's zstd stream needs a window above 8 MiB (RFC 9659): compress it with a smaller one",
        ),
        row(
            "Content-Encoding: zstd",
            &zstd_dictionary,
            415,
            None,
            "the body's zstd stream needs a dictionary, which is not taken: compress it without one",
        ),
        row(
            "Content-Encoding: deflate",
            &[0x78, 0x20, 1, 2, 3, 4, 5, 6],
            415,
            None,
            "the body's deflate stream needs a dictionary, which is not taken: compress it without one",
        ),
        row(
            "Content-Encoding: br",
            &[0x11, 0x1a, 0, 0],
            415,
            None,
            "the body's brotli stream has a large window, which is not taken: compress it with a window of at most 24 bits",
        ),
        row(
            "Content-Encoding: gzip",
            event,
            400,
            None,
            "the body is damaged or no gzip, nothing was accepted: incorrect header check",
        ),
        row(
            "Content-Encoding: gzip",
            &wrong,
            400,
            None,
            "the body is damaged or no gzip, nothing was accepted: incorrect data check",
        ),
        row(
            "Content-Encoding: gzip",
            cut,
            400,
            None,
            "the body's gzip stream ends before its end, nothing was accepted: send all of it again",
        ),
        row(
            "Content-Encoding: gzip",
            &[&gzip(event)[..], b"\0\0"].concat(),
            400,
            None,
            "behind the end of the body's gzip stream stand bytes that are none, nothing was accepted",
        ),
        row(
            "Content-Encoding: zstd",
            event,
            400,
            None,
            "the body is damaged or no zstd, nothing was accepted: it does not begin with a frame",
        ),
        row(
            "Content-Encoding: deflate",
            event,
            400,
            None,
            "the body is damaged or no deflate, nothing was accepted: invalid distance too far back",
        ),
        row(
            "Content-Encoding: br",
            event,
            400,
            None,
            "the body is damaged or no brotli, nothing was accepted: FORMAT_PADDING_2",
        ),
        row(
            "Content-Encoding: gzip",
            &gzip(&[b' '; 201]),
            413,
            None,
            "the body inflates from gzip to more than 200 bytes (http.max_body): send it in smaller requests",
        ),
        row(
            "X: y",
            &[b' '; 201],
            413,
            None,
            "the body is larger than 200 bytes (http.max_body): send it in smaller requests",
        ),
        row(
            "X: y",
            b"[1,2,3]",
            413,
            None,
            "more than 2 events in one request (http.max_events): send them in smaller requests",
        ),
        row(
            "X: y",
            b"{}{}{}",
            413,
            None,
            "more than 2 events in one request (http.max_events): send them in smaller requests",
        ),
        row(
            "X: y",
            b"\xef\xbb\xbf\n",
            400,
            invalid,
            "the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson",
        ),
        row(
            "Content-Encoding: br",
            b"",
            400,
            invalid,
            "the body is empty: send a JSON object, an array of objects, or one object a line as application/x-ndjson",
        ),
        row(
            "X: y",
            b"\xff\xfe{\0}\0",
            400,
            invalid,
            "the body begins with the byte order mark of UTF-16 or UTF-32: send it in UTF-8",
        ),
        row(
            "X: y",
            b"7",
            400,
            Some("not_an_object"),
            "the body must be a JSON object, or several, or an array of them",
        ),
        row(
            "X: y",
            b"tru",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: EOF while parsing a value at line 1 column 3",
        ),
        row(
            "X: y",
            br#"{"x":NaN}"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: NaN is no JSON, send null or a string: expected value at line 1 column 6",
        ),
        row(
            "X: y",
            br#"[{},{"x":"}]"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: the array has no end: a string or a bracket stays open in element 1 (from the array's byte 4 on)",
        ),
        row(
            "X: y",
            br#"[{},{"x":[}]"#,
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: brackets do not match in element 1 of the array (from the array's byte 4 on)",
        ),
        row(
            "X: y",
            b"[{}] x",
            400,
            invalid,
            "the body is not valid JSON, nothing was accepted: something stands behind the end of the array, from its byte 4 on",
        ),
    ] {
        let head = format!("POST /v1/events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
        let (address, length) = (daemon.address, format!("Content-Length: {}\r\n\r\n", body.len()));
        let request = [head.as_bytes(), length.as_bytes(), &body].concat();
        let reply = tokio::task::spawn_blocking(move || exchange(address, &request)).await.unwrap();
        assert_eq!((reply.problem(status), reply.json()["code"].as_str()), (sentence, code), "{fields}");
    }
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

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
    until(|| held() >= CONNECTIONS * (40 << 10)).await;
    assert!(held() <= CONNECTIONS * (48 << 10), "{} bytes", held());
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
