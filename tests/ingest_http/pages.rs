//! Pages of other origins (`http.cors`), and the document that describes the listener.

use super::*;

#[actix::test]
async fn pages_of_an_allowed_origin_may_read_each_answer_and_others_none() {
    let daemon = Daemon::start(Queue::Stores, pages_of("https://a.example"));
    let full = daemon.health.gate.reason(Closed::DiskFull);
    for (line, fields, body, status) in [
        ("POST /v1/events", "", r#"{"type":"a"}"#, 415),
        ("POST /v1/events", "Content-Type: application/json\r\n", r#"{"type":"a"}"#, 200),
        ("POST /v1/events", "Content-Type: application/json\r\n", r#"[{"type":"a"},7]"#, 207),
        ("POST /v1/events", "Content-Type: application/json\r\n", "{}", 400),
        ("POST /v1/events", "Content-Type: application/json\r\n", "", 400),
        ("POST /v1/events", "Content-Type: text/html\r\n", "{}", 415),
        ("POST /v1/events", "Expect: 100-continue\r\nContent-Length: 99999999999\r\n", "", 413),
        ("PUT /v1/events", "", "", 405),
        ("OPTIONS /v1/events", "", "", 405),
        ("GET /elsewhere", "", "", 404),
        ("GET /openapi.json", "", "", 200),
        ("GET /health", "", "", 503),
        ("POST /v1/events", "Content-Type: application/json\r\n", r#"{"type":"a"}"#, 503),
    ] {
        if status == 503 {
            full.set("71 % used".to_owned());
        }
        for (origin, allowed) in [("https://a.example", true), ("https://b.example", false)] {
            // What any page can send without asking is for allowed ones alone.
            let status = if allowed && fields.is_empty() && status == 415 { 200 } else { status };
            let request = of_page(line, &format!("Origin: {origin}\r\n{fields}"), body);
            let request = request.replacen("Content-Length: 0\r\n", "", usize::from(status == 413));
            let reply = daemon.send(request).await;
            assert_eq!(reply.status, status, "{line} {fields} of {origin}: {}", reply.body);
            let said = reply.header("access-control-allow-origin");
            assert_eq!(said, allowed.then_some(origin), "{line} {fields}: {}", reply.head);
            assert_eq!(reply.header("vary"), Some("Origin"), "{line} {fields}: {}", reply.head);
            let exposed = reply.header("access-control-expose-headers");
            for name in ["Retry-After", "X-Request-Id"] {
                assert_eq!(exposed.is_some_and(|names| names.contains(name)), allowed, "{}", reply.head);
            }
        }
    }
}

#[actix::test]
async fn a_browser_that_asks_is_answered_by_the_configuration_of_now_and_while_the_door_is_closed() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let ask = |path: &str, origin: &str| {
        daemon.send(of_page(&format!("OPTIONS {path}"), &format!("Origin: {origin}\r\n{PREFLIGHT}"), ""))
    };
    let reply = ask("/v1/events", "https://a.example").await;
    assert!(reply.problem(403).contains("http.cors.origins"), "{}", reply.body);
    assert!(!reply.head.to_lowercase().contains("access-control") && reply.header("vary").is_none(), "{}", reply.head);
    let reply = daemon.post_json(r#"{"type":"a"}"#).await;
    assert!(!reply.head.to_lowercase().contains("access-control") && reply.header("vary").is_none(), "{}", reply.head);

    daemon.change_limits(|http| *http = HttpConfig { listen: http.listen.clone(), ..pages_of("https://a.example") });
    let full = daemon.health.gate.reason(Closed::DiskFull);
    full.set("71 % used".to_owned());
    let reply = ask("/v1/events", "https://a.example").await;
    assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    for (name, value) in [
        ("access-control-allow-origin", "https://a.example"),
        ("access-control-allow-credentials", "true"),
        ("access-control-allow-headers", "content-type,traceparent,tracestate,x-request-id"),
        ("access-control-max-age", "7200"),
        ("vary", "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"),
    ] {
        assert_eq!(reply.header(name), Some(value), "{name}");
    }
    assert!(reply.header("access-control-allow-methods").is_some_and(|methods| methods.contains("POST")));
    ask("/v1/events", "https://b.example").await.problem(403);
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"204\"}"), "1");
    assert_eq!(daemon.metric("ingestd_requests_total{status=\"403\"}"), "2");
}

#[actix::test]
async fn what_any_page_can_send_without_asking_is_taken_of_an_allowed_origin_alone() {
    let daemon = Daemon::start(Queue::Stores, pages_of("https://a.example"));
    for (content_type, origin, status) in [
        ("Content-Type: text/plain;charset=UTF-8\r\n", "Origin: https://a.example\r\n", 200),
        ("Content-Type: text/plain;charset=UTF-8\r\n", "Origin: https://b.example\r\n", 415),
        ("Content-Type: text/plain;charset=UTF-8\r\n", "Origin: null\r\n", 415),
        ("Content-Type: text/plain;charset=UTF-8\r\n", "", 415),
        ("", "Origin: https://a.example\r\n", 200),
        ("", "Origin: https://b.example\r\n", 415),
        ("", "", 200),
        // Its browser has asked, or it is no browser's.
        ("Content-Type: application/json\r\n", "Origin: https://b.example\r\n", 200),
    ] {
        let request = of_page("POST /v1/events", &format!("{origin}{content_type}"), r#"{"type":"a"}"#);
        let reply = daemon.send(request).await;
        assert_eq!(reply.status, status, "{content_type}{origin}: {}", reply.body);
        let names_the_key = status == 415 && !origin.is_empty();
        assert_eq!(reply.body.contains("http.cors.origins"), names_the_key, "{}", reply.body);
    }
    assert_eq!(daemon.log.lock().unwrap().records.len(), 4);
}

#[actix::test]
async fn a_type_that_is_no_text_gets_no_page_around_being_asked_on_any_path_that_takes_bodies() {
    let mut http = pages_of("https://a.example");
    http.source = other_shapes().source;
    let daemon = Daemon::start(Queue::Stores, http);
    for path in ["/v1/events", "/v1/logs", "/hook", "/one", "/list"] {
        for content_type in
            [&b"text/plain;a=\xe9"[..], b"text/plain\xe9", b"application/x-www-form-urlencoded;\xff", b"\xe9"]
        {
            let length = "{}".len();
            let head = format!(
                "POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nOrigin: https://b.example\r\n\
                 Content-Length: {length}\r\nContent-Type: "
            );
            let request = [head.as_bytes(), content_type, b"\r\n\r\n{}"].concat();
            let address = daemon.address;
            let reply = tokio::task::spawn_blocking(move || exchange(address, &request)).await.unwrap();
            assert_eq!(reply.status, 415, "{path} {content_type:?}: {}", reply.body);
        }
    }
    assert!(daemon.log.lock().unwrap().records.is_empty());
}

#[actix::test]
async fn the_document_is_the_listeners_own_and_what_it_does_not_describe_is_405() {
    let rate = serde_json::from_value(json!("1/s")).unwrap();
    let daemon = Daemon::start(Queue::Stores, HttpConfig { auth: keys::locked().auth, rate, ..pages_of("*") });
    let reply = daemon.get("GET /openapi.json").await;
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/json")));
    let document = reply.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["paths"], openapi::DOCUMENTS[0]["paths"], "of the same configuration");
    for path in document["paths"].as_object().unwrap().keys() {
        let described = openapi::operations(&document, path).unwrap();
        for method in ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PURGE"] {
            let reply = daemon.get(&format!("{method} {path}")).await;
            let is_described = method != "OPTIONS" && described.contains_key(&method.to_ascii_lowercase());
            assert_eq!(reply.status == 405, !is_described, "{method} {path}: {}", reply.status);
        }
    }
    until(|| daemon.metric("ingestd_in_flight_bytes") == "0").await;
    daemon.change_limits(|http| http.max_in_flight = ByteSize(1000));
    let reply = daemon.get("GET /openapi.json").await;
    assert_eq!(reply.header("retry-after"), Some("1"), "{}", reply.head);
}

#[actix::test]
async fn each_media_type_coding_and_preference_that_is_described_is_taken() {
    let daemon = Daemon::start(Queue::Stores, pages_of("*"));
    let document = daemon.get("GET /openapi.json").await.json();
    let post = &document["paths"]["/v1/events"]["post"];
    let cloud_event = r#"{"specversion":"1.0","type":"a","source":"s","id":"1","data":{}}"#;
    let media_types = post["requestBody"]["content"].as_object().unwrap();
    assert!(media_types.len() >= 8, "{media_types:?}");
    for media_type in media_types.keys() {
        let body = match media_type.as_str() {
            "application/cloudevents+json" => cloud_event.to_owned(),
            "application/cloudevents-batch+json" => format!("[{cloud_event}]"),
            _ => r#"{"type":"a"}"#.to_owned(),
        };
        let fields = format!("Origin: https://a.example\r\nContent-Type: {media_type}\r\n");
        let reply = daemon.send(of_page("POST /v1/events", &fields, &body)).await;
        assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(1)), "{media_type}: {}", reply.body);
    }
    let parameter = |name: &str| post["parameters"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap();
    let words = |value: &Value| {
        value.as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let codings = words(&parameter("Content-Encoding")["schema"]["examples"]);
    assert_eq!(codings[..4], coding::CODINGS);
    for name in &codings {
        let body = br#"{"type":"a"}"#;
        let body = if name == "identity" { body.to_vec() } else { coding::compressed(name, body) };
        let reply = daemon.post_coded(name, &body).await;
        assert_eq!((reply.status, &reply.json()["accepted"]), (200, &json!(1)), "{name}: {}", reply.body);
    }
    for preference in words(&parameter("Prefer")["schema"]["examples"]) {
        let fields = format!("Content-Type: application/json\r\nPrefer: {preference}\r\n");
        let reply = daemon.post_at("/v1/events", &fields, br#"{"type":"a"}"#).await;
        assert_eq!((reply.status, reply.applied()), (200, Some(preference.as_str())), "{}", reply.body);
        let positions = reply.json().get("positions").cloned();
        assert_eq!(positions, (preference == "return=positions").then(|| json!(["3:1"])), "{preference}");
    }
    let attributes = ["ce-specversion: 1.0", "ce-type: a", "ce-source: s", "ce-id: 1", "ce-time: 2026-11-23T08:00:00Z"];
    for attribute in attributes {
        parameter(attribute.split(':').next().unwrap());
    }
    let fields = format!("{}\r\n", attributes.join("\r\n"));
    let reply = daemon.send(of_page("POST /v1/events", &fields, "")).await;
    assert_eq!((reply.status, &reply.json()["ids"]), (200, &json!(["1"])), "{}", reply.body);
}

#[actix::test]
async fn what_the_schema_of_an_event_allows_is_taken_and_what_it_does_not_is_refused() {
    let daemon = Daemon::start(Queue::Stores, HttpConfig::default());
    let document = daemon.get("GET /openapi.json").await.json();
    let event = json!({ "type": "a" });
    let cloud_event = json!({ "specversion": "1.0", "type": "a", "source": "s", "id": "1" });
    let long = |length: usize| json!("ü".repeat(length));
    for (schema, media_type, least, members) in [
        (
            "Event",
            "application/json",
            event,
            vec![
                ("type", json!(""), false),
                ("type", long(128), true),
                ("type", long(129), false),
                ("type", json!(null), false),
                ("event_id", json!(null), true),
                ("event_id", json!(""), false),
                ("event_id", long(256), true),
                ("event_id", long(257), false),
                ("event_id", json!(7), false),
                ("client_id", json!({ "a": [null] }), true),
                ("timestamp", json!([]), true),
                ("Any Name", json!({ "a": [null] }), true),
            ],
        ),
        (
            "CloudEvent",
            "application/cloudevents+json",
            cloud_event,
            vec![
                ("specversion", json!("0.3"), false),
                ("type", long(128), true),
                ("type", long(129), false),
                ("id", json!(null), false),
                ("id", long(256), true),
                ("id", long(257), false),
                ("source", json!(""), false),
                ("subject", json!(null), true),
                ("subject", json!(7), false),
                ("dataschema", json!("https://a.example/schema"), true),
                ("datacontenttype", json!(false), false),
                ("time", json!("now"), true),
                ("partitionkey", json!(7), true),
                ("partitionkey", json!([7]), false),
                ("data", json!(null), true),
                ("data_base64", json!("AAE="), true),
                ("data_base64", json!("AAE"), true),
                ("data_base64", json!("AA=="), true),
                ("data_base64", json!("AA="), true),
                ("data_base64", json!("AA"), true),
                ("data_base64", json!("AAEC"), true),
                ("data_base64", json!("AAF"), false),
                ("data_base64", json!("A"), false),
                ("data_base64", json!("ü"), false),
                ("data_base64", json!(7), false),
                ("data_base64", json!(null), true),
                ("anextension1", json!(true), true),
                ("anextension1", json!(7), true),
                ("anextension1", json!(7.5), false),
                ("anextension1", json!({}), false),
                ("anExtension", json!("a"), false),
                ("an_extension", json!("a"), false),
                ("", json!("a"), false),
            ],
        ),
    ] {
        let mut both = vec![(least.clone(), true)];
        both.extend(members.into_iter().map(|(name, value, is_right)| {
            let mut body = least.clone();
            body[name] = value;
            (body, is_right)
        }));
        for name in least.as_object().unwrap().keys() {
            let mut without = least.clone();
            without.as_object_mut().unwrap().remove(name);
            both.push((without, false));
        }
        if schema == "CloudEvent" {
            for (base64, is_right) in [(json!("AAE="), false), (json!(null), true)] {
                let mut body = least.clone();
                (body["data"], body["data_base64"]) = (json!({}), base64);
                both.push((body, is_right));
            }
        }
        let mut root = document["components"]["schemas"][schema].clone();
        root["components"] = document["components"].clone();
        let schema = jsonschema::validator_for(&root).unwrap();
        for (body, is_right) in both {
            let reply = daemon.post(media_type, &body.to_string()).await;
            assert_eq!(reply.status, if is_right { 200 } else { 400 }, "{media_type}: {body}: {}", reply.body);
            assert_eq!(schema.is_valid(&body), is_right, "{media_type}: {body}");
        }
    }
}

#[actix::test]
async fn the_paths_of_sources_and_logs_are_described_as_they_are_answered_and_pages_may_use_them() {
    let daemon = Daemon::start(Queue::Stores, pages_of("https://a.example"));
    daemon.change_limits(|http| {
        let sources = json!([
            { "path": "/v1/batch", "records": "/batch", "type": "/type" },
            { "path": "/2/httpapi", "records": "/events", "type": "/event_type", "answer": "{\"code\":200}" },
            { "path": "/hook", "type": { "fixed": "alert" }, "answer": "ok" },
        ]);
        http.source = serde_json::from_value(sources).unwrap();
    });
    let document = daemon.get("GET /openapi.json").await.json();
    let (allowed, other) = ("Origin: https://a.example\r\n", "Origin: https://b.example\r\n");
    let asks = format!("{allowed}{PREFLIGHT}");
    let text = format!("{allowed}Content-Type: text/plain\r\n");
    let text_of_another = format!("{other}Content-Type: text/plain\r\n");
    let json = "Content-Type: application/json\r\n";
    let json_of_another = format!("{other}{json}");
    let lenient = format!("{json}Prefer: handling=lenient\r\n");
    let strict = format!("{json}Prefer: handling=strict\r\n");
    for (path, right, some, wrong) in [
        ("/v1/batch", r#"{"batch":[{"type":"a"}]}"#, Some(r#"{"batch":[{"type":"a"},7]}"#), r#"{"batch":[7]}"#),
        ("/2/httpapi", r#"{"events":[{"event_type":"a"}]}"#, Some(r#"{"events":[{"event_type":"a"},7]}"#), "[]"),
        ("/hook", r#"{"labels":{}}"#, None, "{"),
        ("/v1/logs", r#"{"resourceLogs":[]}"#, None, "7"),
    ] {
        let is_logs = path == "/v1/logs";
        let post = format!("POST {path}");
        for (line, fields, body, status) in [
            (&post, json, right, 200),
            (&post, &json_of_another, right, 200),
            (&post, &lenient, right, 200),
            (&post, &strict, some.unwrap_or(right), if some.is_some() { 400 } else { 200 }),
            (&post, json, some.unwrap_or(right), if some.is_some() { 207 } else { 200 }),
            (&post, json, wrong, 400),
            (&post, &text, right, if is_logs { 415 } else { 200 }),
            (&post, &text_of_another, right, 415),
            (&post, &format!("{json}Content-Encoding: compress\r\n"), right, 415),
            (&format!("GET {path}"), "", "", 405),
            (&format!("OPTIONS {path}"), &asks, "", 204),
        ] {
            let reply = daemon.send(of_page(line, fields, body)).await;
            assert_eq!(reply.status, status, "{line} {fields}{body}: {}", reply.body);
            openapi::check_by(std::slice::from_ref(&document), &answered(line, &reply));
            let said = reply.header("access-control-allow-origin");
            assert_eq!(said.is_some(), fields.starts_with(allowed), "{line} {fields}: {}", reply.head);
            let applied = reply.applied().is_some();
            assert_eq!(applied, fields.contains("Prefer"), "{line} {fields}: {}", reply.head);
        }
    }
}
