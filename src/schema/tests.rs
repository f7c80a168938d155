use std::{fs, os::unix::fs::symlink, time::Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

/// A folder `schemas` with these files, beside others.
fn folder(files: &[(&str, &str)]) -> TempDir {
    let outer = tempfile::tempdir().unwrap();
    fs::create_dir_all(outer.path().join("schemas/below")).unwrap();
    fs::write(outer.path().join("secret.json"), r#"{"type": "string"}"#).unwrap();
    for (name, text) in files {
        fs::write(outer.path().join("schemas").join(name), text).unwrap();
    }
    outer
}

fn compile(files: &[(&str, &str)]) -> Result<Schema, String> {
    let outer = folder(files);
    let path = outer.path().join("schemas").join(files[0].0);
    let strip = format!("{}/", outer.path().display());
    Schema::compile(&path).map_err(|unusable| unusable.sentence.replace(&strip, ""))
}

fn of(schema: Value) -> Schema {
    compile(&[("a.json", &schema.to_string())]).unwrap()
}

fn wrong(schema: Value, event: &str) -> String {
    of(schema).check(event.as_bytes()).map_or_else(|mismatch| mismatch.to_string(), |()| "right".to_owned())
}

#[test]
fn a_mismatch_names_the_pointer_and_what_must_be_and_never_what_is() {
    let of_user =
        json!({ "properties": { "user": { "properties": { "id": { "type": "string" }, "a/b~": { "maximum": 7 } } } } });
    for (schema, event, sentence) in [
        (
            of_user.clone(),
            r#"{"user":{"id":7}}"#,
            r#"at "/user/id": must be of type string ("/properties/user/properties/id/type" of the schema)"#,
        ),
        (of_user, r#"{"user":{"a/b~":8}}"#, r#"at "/user/a~1b~0": must be at most 7"#),
        (json!({ "required": ["user_id"] }), "{}", r#"at "/user_id": is missing ("/required" of the schema)"#),
        (json!({ "required": ["user_id"] }), "{", "at \"\": it must be JSON that can be read as a whole: EOF"),
        (
            json!({ "items": { "type": ["string", "null"] } }),
            r#"["hunter2",7]"#,
            r#"at "/1": must be of type null or string"#,
        ),
        (
            json!({ "properties": { "password": false } }),
            r#"{"password":"hunter2"}"#,
            r#"at "/password": must not be there"#,
        ),
        (
            json!({ "additionalProperties": false, "properties": { "a": true } }),
            r#"{"a":1,"b":"hunter2","c":2}"#,
            r#"at "/b": must not be there"#,
        ),
        (json!({ "unevaluatedProperties": false }), r#"{"b":"hunter2"}"#, r#"at "/b": must not be there"#),
        (
            json!({ "propertyNames": { "maxLength": 3 } }),
            r#"{"long":1}"#,
            r#"at "/long": its name is none that may be there: it must have at most 3 characters"#,
        ),
        (
            json!({ "properties": { "a": { "enum": ["x", 1] } } }),
            r#"{"a":"hunter2"}"#,
            r#"at "/a": must be one of ["x",1]"#,
        ),
        (json!({ "properties": { "a": { "const": true } } }), r#"{"a":"hunter2"}"#, r#"at "/a": must be true"#),
        (
            json!({ "properties": { "a": { "pattern": "^x$" } } }),
            r#"{"a":"hunter2"}"#,
            r#"at "/a": must match the pattern ^x$"#,
        ),
        (
            json!({ "properties": { "a": { "minLength": 9 } } }),
            r#"{"a":"hunter2"}"#,
            r#"at "/a": must have at least 9 characters"#,
        ),
        (
            json!({ "properties": { "a": { "multipleOf": 2 } } }),
            r#"{"a":12345}"#,
            r#"at "/a": must be a multiple of 2"#,
        ),
        (
            json!({ "properties": { "a": { "not": { "type": "string" } } } }),
            r#"{"a":"hunter2"}"#,
            r#"at "/a": is what must not be"#,
        ),
        (
            json!({ "properties": { "a": { "uniqueItems": true } } }),
            r#"{"a":["hunter2","hunter2"]}"#,
            r#"at "/a": must have no two elements alike"#,
        ),
        (
            json!({ "properties": { "a": { "contains": { "const": 1 } } } }),
            r#"{"a":["hunter2"]}"#,
            r#"at "/a": must have such elements as contains asks for"#,
        ),
        (
            json!({ "anyOf": [{ "required": ["a"] }, { "required": ["b"] }] }),
            r#"{"c":"hunter2"}"#,
            r#"at "": matches none of the schemas in anyOf"#,
        ),
        (
            json!({ "oneOf": [{ "required": ["a"] }, {}] }),
            r#"{"a":"hunter2"}"#,
            r#"at "": matches more than one of the schemas in oneOf"#,
        ),
        (
            json!({ "if": { "required": ["a"] }, "then": { "required": ["b"] } }),
            r#"{"a":"hunter2"}"#,
            r#"at "/b": is missing"#,
        ),
    ] {
        let found = wrong(schema.clone(), event);
        assert!(
            found.contains(sentence) && !found.contains("hunter2") && !found.contains("12345"),
            "{schema}: {found}"
        );
    }
    assert_eq!(wrong(json!({ "items": { "properties": { "x": false } } }), "[]"), "right");
    assert!(wrong(json!({}), "").contains("there is no data, and a schema is about JSON"));
    // Names may be long, and a pointer of many is cut.
    let long = format!("{{\"{}\":1}}", "n".repeat(10_000));
    assert!(wrong(json!({ "additionalProperties": false }), &long).len() < 300);
    let deep = format!("{}1{}", "{\"nnnnnnnnnn\":".repeat(100), "}".repeat(100));
    let nested = json!({ "$ref": "#/$defs/n", "$defs": { "n": { "anyOf": [], "additionalProperties": { "$ref": "#/$defs/n" } } } });
    assert!(compile(&[("a.json", &nested.to_string())]).is_err(), "an empty anyOf is none");
    let nested = json!({ "$ref": "#/$defs/n", "$defs": { "n": { "type": "object", "additionalProperties": { "$ref": "#/$defs/n" } } } });
    let found = wrong(nested, &deep);
    assert!(found.len() < 500 && found.contains("/nnnnnnnnnn/…"), "{found}");
    // What is escaped counts as it is written.
    let control = format!("{{\"{0}\":{{\"{0}\":{{\"{0}\":1}}}}}}", "\\u0001".repeat(64));
    let found = wrong(
        json!({ "additionalProperties": { "additionalProperties": { "additionalProperties": false } } }),
        &control,
    );
    assert!((490..=500).contains(&found.len()) && found.ends_with('…'), "{}: {found}", found.len());
}

#[test]
fn numbers_are_compared_as_they_are_written_and_of_names_twice_the_last_counts() {
    let maximum = json!({ "properties": { "n": { "maximum": 9_007_199_254_740_992_u64 } } });
    assert!(wrong(maximum.clone(), r#"{"n":9007199254740993}"#).contains("must be at most"));
    assert_eq!(wrong(maximum, r#"{"n":9007199254740992}"#), "right");
    let integer = json!({ "properties": { "n": { "type": "integer" } } });
    assert_eq!(
        (wrong(integer.clone(), r#"{"n":1.0}"#), wrong(integer.clone(), r#"{"n":1e2}"#)),
        ("right".to_owned(), "right".to_owned())
    );
    assert!(wrong(integer.clone(), r#"{"n":1.5}"#).contains("of type integer"));
    assert!(wrong(integer.clone(), r#"{"n":1e999}"#).contains("number out of range"), "nobody knows what it is");
    // As the daemon's own fields are read, where such events are taken at all.
    assert!(wrong(integer.clone(), r#"{"n":1,"n":"x"}"#).contains("of type integer"));
    assert_eq!(wrong(integer, r#"{"n":"x","n":1}"#), "right");
}

#[test]
fn a_reference_leads_to_files_in_the_folder_and_nowhere_else() {
    let common = r#"{"$defs": {"id": {"type": "string"}}}"#;
    let with_id = r#"{"$id": "https://example.com/s/common.json", "$defs": {"id": {"type": "string"}}}"#;
    for (reference, id, common) in [
        ("common.json#/$defs/id", None, common),
        ("./common.json#/$defs/id", None, common),
        ("common.json#/$defs/id", Some("https://example.com/s/login.json"), with_id),
        ("https://example.com/s/common.json#/$defs/id", Some("https://example.com/s/login.json"), with_id),
        ("common.json#/$defs/id", Some("https://example.com/s/login.json"), common),
        ("common.json#/$defs/id", Some("login.json"), common),
    ] {
        let mut schema = json!({ "properties": { "id": { "$ref": reference } } });
        id.into_iter().for_each(|id| schema["$id"] = id.into());
        let schema = compile(&[("a.json", &schema.to_string()), ("common.json", common)]).unwrap();
        assert!(schema.check(br#"{"id":7}"#).unwrap_err().to_string().contains("at \"/id\""), "{reference}");
        assert_eq!((schema.check(br#"{"id":"7"}"#), schema.files().len()), (Ok(()), 2));
    }
    for reference in [
        "../secret.json",
        "/secret.json",
        "file:///etc/passwd",
        "file:../secret.json",
        "https://example.com/common.json",
        "http://169.254.169.254/latest",
        "//example.com/common.json",
        "..%2fsecret.json",
        "%2e%2e/secret.json",
        "below/../../secret.json",
        "%2Fetc%2Fpasswd",
        "schema:/elsewhere/common.json",
        "common.json?x",
        "common.json%00",
        "data:application/json,x",
        "urn:example:x",
    ] {
        for id in [None, Some("https://example.com/s/login.json")] {
            let mut schema = json!({ "$ref": reference });
            id.into_iter().for_each(|id| schema["$id"] = id.into());
            let refused = compile(&[("a.json", &schema.to_string()), ("common.json", common)]).unwrap_err();
            assert!(
                refused.starts_with("schemas/a.json: ")
                    && refused.contains("leads elsewhere: only files in the schema's own folder"),
                "{reference}: {refused}"
            );
        }
    }
    // An `$id` of the other does not lead out of it either.
    let other = r#"{"$id": "https://evil.example/x.json", "$ref": "y.json"}"#;
    assert!(
        compile(&[("a.json", r#"{"$ref": "b.json"}"#), ("b.json", other)]).unwrap_err().contains("leads elsewhere")
    );
}

#[test]
fn a_link_out_of_the_folder_is_no_way_out_and_one_inside_is_as_good_as_a_file() {
    let outer = folder(&[("a.json", r#"{"$ref": "linked.json"}"#), ("b.json", r#"{"$ref": "below/c.json"}"#)]);
    let schemas = outer.path().join("schemas");
    symlink("../secret.json", schemas.join("linked.json")).unwrap();
    symlink("../..", schemas.join("below/up")).unwrap();
    let refused = Schema::compile(&schemas.join("a.json")).unwrap_err().sentence;
    assert!(refused.contains("linked.json is a link that leads out of the schema's folder"), "{refused}");
    fs::write(schemas.join("a.json"), r#"{"$ref": "below/up/secret.json"}"#).unwrap();
    assert!(Schema::compile(&schemas.join("a.json")).unwrap_err().sentence.contains("is a link that leads out"));
    // As mounted config maps have it.
    fs::write(schemas.join("below/real.json"), r#"{"type": "string"}"#).unwrap();
    symlink("real.json", schemas.join("below/c.json")).unwrap();
    assert!(Schema::compile(&schemas.join("b.json")).unwrap().check(b"7").is_err());
    let mut link = outer.path().to_owned();
    link.push("link");
    symlink(&schemas, &link).unwrap();
    assert!(Schema::compile(&link.join("b.json")).is_ok(), "the folder itself may be a link");
}

/// They are watched: what is gone for a second, while it is written anew, is there soon.
#[test]
fn a_file_that_cannot_be_read_is_one_of_its_files() {
    let outer = folder(&[("a.json", r#"{"$ref": "b.json"}"#), ("b.json", r#"{"$ref": "below/c.json"}"#)]);
    let schemas = outer.path().join("schemas");
    let three = ["a.json", "b.json", "below/c.json"].map(|name| schemas.join(name));
    let unusable = Schema::compile(&three[0]).unwrap_err();
    assert!(unusable.sentence.contains("below/c.json cannot be read"), "{unusable}");
    assert_eq!(unusable.files, three);
    fs::write(&three[2], "{").unwrap();
    assert_eq!(Schema::compile(&three[0]).unwrap_err().files, three);
    fs::write(&three[2], "{}").unwrap();
    assert_eq!(Schema::compile(&three[0]).unwrap().files(), three);
    fs::remove_file(&three[0]).unwrap();
    assert_eq!(Schema::compile(&three[0]).unwrap_err().files, three[..1]);
}

/// Those that are ready to be copied.
#[test]
fn the_ready_schemas_are_about_plain_events_and_the_data_of_cloud_events() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/schemas");
    let types: toml::Table = fs::read_to_string(folder.join("types.toml")).unwrap().parse().unwrap();
    let types = types["event"]["types"].as_array().unwrap();
    assert_eq!(types.len(), 7);
    for of in types {
        let (name, file) = (of["name"].as_str().unwrap(), of["schema"].as_str().unwrap());
        let schema = Schema::compile(&folder.join(file.strip_prefix("schemas/").unwrap())).unwrap();
        let right = json!({ "user_id": "u-1", "ip": "2001:db8::1", "reason": "x", "outcome": "sent", "step": "failed", "more": [1] });
        let mut plain = right.clone();
        plain["type"] = name.into();
        // Whatever a sender calls it.
        let mut elsewhere = right.clone();
        elsewhere["type"] = json!({ "of": "a source, whose type is somewhere else" });
        for data in [&right, &plain, &elsewhere] {
            assert_eq!(schema.check(data.to_string().as_bytes()), Ok(()), "{file}: {data}");
        }
        for (member, wrong) in [("ip", json!("nowhere")), ("password", json!("hunter2")), ("user_id", json!([]))] {
            let mut data = right.clone();
            data[member] = wrong;
            let mismatch = schema.check(data.to_string().as_bytes()).unwrap_err();
            assert_eq!(mismatch.pointer, format!("/{member}"), "{file}: {mismatch}");
        }
    }
}

#[test]
fn what_is_no_schema_is_one_sentence_that_names_the_file() {
    let nested = |levels: usize| format!("{}{{}}{}", r#"{"not":"#.repeat(levels), "}".repeat(levels));
    let many = json!({ "allOf": vec![json!({ "$ref": "#" }); 1001] }).to_string();
    for (text, words) in [
        ("", "schemas/a.json: is no JSON: EOF"),
        ("[]", "schemas/a.json: is no schema: it must be a JSON object"),
        (r#"{"type": "strnig"}"#, "schemas/a.json: at \"/type\": it is no JSON Schema of 2020-12"),
        (r#"{"properties": {"a": {"required": "b"}}}"#, "schemas/a.json: at \"/properties/a/required\""),
        (
            r#"{"$schema": "http://json-schema.org/draft-07/schema#"}"#,
            "$schema is \"http://json-schema.org/draft-07/schema\": write it for https://json-schema.org/draft/2020-12/schema",
        ),
        (r#"{"$ref": "no.json"}"#, "schemas/no.json cannot be read (No such file"),
        (r##"{"$ref": "#/$defs/a"}"##, "schemas/a.json: a reference cannot be resolved"),
        (
            r#"{"pattern": "(?=a)b"}"#,
            "schemas/a.json: the pattern at \"/pattern\" cannot be used: it must be a regular expression without look-around",
        ),
        (r#"{"pattern": "(a)\\1"}"#, "the pattern at \"/pattern\" cannot be used"),
        (r#"{"pattern": "("}"#, "the pattern at \"/pattern\" cannot be used"),
        (r#"{"pattern": "(?:a{1000}){1000}"}"#, "the pattern at \"/pattern\" cannot be used"),
        (&nested(65), "is nested deeper than 64 levels"),
        (&many, "has 1001 references, and 1000 may be in a file"),
        (&format!("{}{{}}", " ".repeat(1 << 20)), "is larger than 1048576 bytes"),
    ] {
        let refused = compile(&[("a.json", text)]).unwrap_err();
        assert!(refused.contains(words), "{:.80}: {refused}", text);
    }
    let doubling: serde_json::Map<String, Value> = (0..40)
        .map(|at| (format!("d{at}"), json!({ "allOf": [{ "$ref": format!("#/$defs/d{}", at + 1) }, { "$ref": format!("#/$defs/d{}", at + 1) }] })))
        .chain([("d40".to_owned(), json!({ "type": "object" }))])
        .collect();
    let doubling = json!({ "$ref": "#/$defs/d0", "$defs": doubling }).to_string();
    assert!(
        compile(&[("a.json", &doubling)]).unwrap_err().contains("its references multiply to more than 100000 schemas")
    );
    let (to, twice) = (r#"{"$ref": "b.json"}"#, json!({ "allOf": vec![json!({ "$ref": "c.json" }); 400] }).to_string());
    let thousands = json!({ "allOf": vec![json!({}); 400] }).to_string();
    assert!(compile(&[("a.json", to), ("b.json", &twice), ("c.json", &thousands)]).unwrap_err().contains("multiply"));
    let tree = r##"{"properties": {"left": {"$ref": "#"}, "right": {"$ref": "#"}}}"##;
    assert!(compile(&[("a.json", tree)]).is_ok(), "it refers to itself");
    assert!(compile(&[("a.json", r#"{"$schema": "https://json-schema.org/draft/2020-12/schema"}"#)]).is_ok());
    assert!(Schema::compile(Path::new("/dev/zero")).unwrap_err().sentence.contains("is no file"));
    assert!(
        Schema::compile(Path::new("/no/such.json")).unwrap_err().sentence.starts_with("/no/such.json: cannot be read")
    );
    let chain: Vec<(String, String)> =
        (0..70).map(|at| (format!("{at}.json"), format!(r#"{{"$ref": "{}.json"}}"#, at + 1))).collect();
    let chain: Vec<_> = chain.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    assert!(compile(&chain).unwrap_err().contains("is one file too many, as a schema may have 64"));
}

/// Of `million` parts and of half as many: what takes n log n, or less, takes no more than some three times as long for twice.
#[test]
fn what_an_event_costs_is_bounded_by_its_size_whatever_the_schema_asks() {
    let many =
        |element: &dyn Fn(usize) -> String| format!("[{}]", (0..60_000).map(element).collect::<Vec<_>>().join(","));
    let objects = many(&|at| format!("{{\"a\":{at}}}"));
    for (what, schema, event) in [
        ("unique", json!({ "uniqueItems": true }), objects.clone()),
        (
            "branches",
            json!({ "anyOf": [{ "items": { "type": "string" } }, { "items": { "type": "null" } }] }),
            objects.clone(),
        ),
        ("none of them", json!({ "items": { "type": "string" } }), objects.clone()),
        ("contains", json!({ "contains": { "const": { "a": -1 } } }), objects),
        ("a bad pattern", json!({ "pattern": "^(a+)+$" }), format!("\"{}b\"", "a".repeat(500_000))),
        (
            "deep",
            json!({ "additionalProperties": { "$ref": "#" } }),
            format!("{}1{}", "{\"a\":".repeat(126), "}".repeat(126)),
        ),
        // Of which all that is wrong in each branch, or twice, would be gathered.
        (
            "a tagged union",
            json!({
                "$ref": "#/$defs/node",
                "$defs": {
                    "node": { "oneOf": [{ "$ref": "#/$defs/and" }, { "$ref": "#/$defs/or" }, { "$ref": "#/$defs/leaf" }] },
                    "and": { "required": ["op", "of"], "properties": { "op": { "const": "and" }, "of": { "$ref": "#/$defs/node" } } },
                    "or": { "required": ["op", "of"], "properties": { "op": { "const": "or" }, "of": { "$ref": "#/$defs/node" } } },
                    "leaf": { "required": ["field"] }
                }
            }),
            format!("{}1{}", "{\"op\":\"no\",\"of\":".repeat(120), "}".repeat(120)),
        ),
        (
            "anyOf of recursion",
            json!({ "anyOf": [
                { "type": "string" },
                { "additionalProperties": { "$ref": "#" } },
                { "additionalProperties": { "$ref": "#" } }
            ] }),
            format!("{}1{}", "{\"a\":".repeat(126), "}".repeat(126)),
        ),
        (
            "twice without branches",
            json!({
                "additionalProperties": { "allOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }] },
                "$defs": { "a": { "additionalProperties": { "allOf": [{ "$ref": "#/$defs/a" }, { "$ref": "#/$defs/a" }] } } },
                "not": { "required": ["a"] }
            }),
            format!("{}1{}", "{\"a\":".repeat(126), "}".repeat(126)),
        ),
        (
            "dynamic recursion",
            json!({
                "$dynamicAnchor": "n",
                "anyOf": [{ "additionalProperties": { "$dynamicRef": "#n" } }, { "additionalProperties": { "$dynamicRef": "#n" } }, { "type": "null" }]
            }),
            format!("{}1{}", "{\"a\":".repeat(126), "}".repeat(126)),
        ),
        (
            "many parts in many branches",
            json!({ "anyOf": vec![json!({ "items": { "anyOf": vec![json!({ "type": "null" }); 100] } }); 100] }),
            many(&|_| "1".to_owned()),
        ),
    ] {
        let schema = of(schema);
        let started = Instant::now();
        let _ = schema.check(event.as_bytes());
        let took = started.elapsed();
        assert!(took.as_secs() < 3, "{what}: {took:?}");
    }
}

/// What a schema of branches and recursion says of an event of an ordinary size.
#[test]
fn what_is_small_is_explained_whatever_the_schema_asks() {
    let tree = json!({
        "$ref": "#/$defs/node",
        "$defs": { "node": {
            "type": "object",
            "properties": { "left": { "$ref": "#/$defs/node" }, "right": { "$ref": "#/$defs/node" }, "of": { "anyOf": [{ "type": "string" }, { "type": "null" }] } }
        } }
    });
    let found = wrong(tree.clone(), r#"{"left":{"right":{"left":{"of":7}}}}"#);
    assert!(found.starts_with("at \"/left/right/left/of\": matches none of the schemas in anyOf"), "{found}");
    let found = wrong(tree, &format!("{}7{}", "{\"left\":".repeat(100), "}".repeat(100)));
    assert!(found.starts_with("at \"/left/left/left"), "{found}");
    let doubling = json!({ "anyOf": [{ "items": { "$ref": "#" }, "type": "array" }, { "items": { "$ref": "#" } }, { "type": "null" }], "not": { "const": 7 } });
    assert!(wrong(doubling.clone(), "[[7]]").starts_with("at \"\": matches none of the schemas in anyOf"));
    let found = wrong(doubling, &format!("{}7{}", "[".repeat(30), "]".repeat(30)));
    assert!(found.starts_with("at \"\": it does not match, and it would take too long to say where"), "{found}");
}

/// How much a tree has allocated, at least: the library's maps have nodes of eleven places, of which a map's first is one.
fn allocated(value: &Value) -> usize {
    match value {
        Value::String(text) => text.capacity(),
        Value::Array(elements) => {
            (elements.capacity() * size_of::<Value>()).next_multiple_of(16)
                + elements.iter().map(allocated).sum::<usize>()
        }
        Value::Object(members) => {
            let node = 11 * (size_of::<String>() + size_of::<Value>()) + 16;
            let members = members.iter().map(|(name, value)| name.capacity() + allocated(value));
            node + members.sum::<usize>()
        }
        _ => 0,
    }
}

#[test]
fn the_weight_of_json_is_above_what_it_takes() {
    let nested = format!("{}{}{}", "[".repeat(120), vec!["[[0]]"; 1000].join(","), "]".repeat(120));
    for json in [
        "[{},{},{}]".to_owned(),
        format!("[{}]", vec!["{\"a\":1}"; 1000].join(",")),
        format!("[{}]", vec!["1"; 1000].join(",")),
        format!("[{}]", vec!["[0]"; 1000].join(",")),
        format!("{}0{}", "[".repeat(126), "]".repeat(126)),
        nested,
        format!("\"{}\"", "x".repeat(1000)),
    ] {
        let (weight, takes) = (weight(json.as_bytes()), allocated(&serde_json::from_str(&json).unwrap()));
        assert!(weight >= takes, "{json:.40}: {weight}, and it takes {takes}");
    }
    let (plain, recursive) = (of(json!({})), of(json!({ "items": { "$ref": "#" } })));
    assert_eq!(recursive.weight(b"[[0]]") - plain.weight(b"[[0]]"), 2 * 96);
}

#[test]
fn what_references_lead_to_is_counted_however_they_are_written() {
    let doubling = |from: &dyn Fn(usize) -> String, define: &dyn Fn(usize, Value) -> (String, Value)| {
        let both = |at: usize| json!({ "allOf": [{ "$ref": from(at) }, { "$ref": from(at) }] });
        let defs = (0..40).map(|at| define(at, both(at + 1))).chain([define(40, json!({ "type": "object" }))]);
        json!({ "$ref": from(0), "$defs": defs.collect::<serde_json::Map<_, _>>() }).to_string()
    };
    let with = |key: &str, name: String, mut value: Value| {
        value[key] = name.into();
        value
    };
    for (what, schema) in [
        ("pointers", doubling(&|at| format!("#/$defs/d{at}"), &|at, value| (format!("d{at}"), value))),
        ("encoded", doubling(&|at| format!("%61.json#/%24defs/d{at}"), &|at, value| (format!("d{at}"), value))),
        (
            "anchors",
            doubling(&|at| format!("#x{at}"), &|at, value| {
                (format!("d{at}"), with("$anchor", format!("x{at}"), value))
            }),
        ),
        (
            "dynamic anchors",
            doubling(&|at| format!("#x{at}"), &|at, value| {
                (format!("d{at}"), with("$dynamicAnchor", format!("x{at}"), value))
            }),
        ),
        (
            "ids",
            doubling(&|at| format!("x{at}"), &|at, value| (format!("d{at}"), with("$id", format!("x{at}"), value))),
        ),
    ] {
        let refused = compile(&[("a.json", &schema)]).unwrap_err();
        assert!(refused.contains("its references multiply to more than 100000 schemas"), "{what}: {refused}");
    }
    // The same name in two folders, of which the one that is small would be taken for the other.
    let large = json!({ "allOf": vec![json!({ "$ref": "below/c.json" }); 400] }).to_string();
    let thousands = json!({ "allOf": vec![json!({}); 400] }).to_string();
    let files = [("a.json", large.as_str()), ("c.json", "{}"), ("below/c.json", &thousands)];
    assert!(compile(&files).unwrap_err().contains("multiply"));
    for (schema, words) in [
        (r##"{"$ref": "#nowhere"}"##, "schemas/a.json: a reference cannot be resolved"),
        (r##"{"properties": {"a": {"$dynamicRef": "#nowhere"}}}"##, "schemas/a.json: a reference cannot be resolved"),
        (
            r##"{"allOf": [{"$ref": "#"}, {"$ref": "#"}], "not": {}}"##,
            "schemas/a.json: a reference leads back to the schema",
        ),
        (
            r##"{"$ref": "#"}"##,
            "schemas/a.json: a reference leads back to the schema in which it stands, about the same value",
        ),
    ] {
        let refused = compile(&[("a.json", schema)]).unwrap_err();
        assert!(refused.contains(words), "{schema}: {refused}");
    }
    // The specification's own, which refers to itself by dynamic anchors through eight documents.
    let meta = of(json!({ "$ref": "https://json-schema.org/draft/2020-12/schema" }));
    assert!(
        meta.check(br#"{"properties":{"a":{"type":"strnig"}}}"#).is_err()
            && meta.check(br#"{"type":"string"}"#).is_ok()
    );
}

/// Files in which each reference leads to the next: what can be compiled can be asked on a worker's stack.
#[test]
fn a_chain_of_references_is_as_long_as_a_stack_is_deep() {
    let chain = |links: usize, files: usize, link: &dyn Fn(String) -> Value| {
        let of = |file: usize| {
            let next = |at: usize| match at + 1 {
                next if next < links => format!("#/$defs/d{next}"),
                _ if file + 1 < files => format!("{}.json#/$defs/d0", file + 1),
                _ => "#/$defs/end".to_owned(),
            };
            let defs = (0..links).map(|at| (format!("d{at}"), link(next(at))));
            let defs: serde_json::Map<_, _> = defs.chain([("end".to_owned(), json!({ "type": "object" }))]).collect();
            (format!("{file}.json"), json!({ "$ref": "#/$defs/d0", "$defs": defs }).to_string())
        };
        let files: Vec<_> = (0..files).map(of).collect();
        let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        compile(&files)
    };
    let here = |to: String| json!({ "$ref": to });
    let below = |to: String| json!({ "properties": { "a": { "$ref": to } } });
    for link in [&here as &dyn Fn(String) -> Value, &below] {
        let refused = chain(999, 20, link).unwrap_err();
        assert!(
            refused.contains("an event may lead through more than 2000 of its schemas within each other"),
            "{refused}"
        );
    }
    // As deep as it may be, in the half of the stack that a thread has.
    let in_recursion = json!({
        "$ref": "#/$defs/a",
        "$defs": {
            "a": { "oneOf": [{ "type": "null" }, { "allOf": [{ "anyOf": [{ "if": { "$ref": "#/$defs/b" }, "else": false }] }] }] },
            "b": { "additionalProperties": { "not": { "not": { "$ref": "#/$defs/a" } } }, "items": { "contains": { "$ref": "#/$defs/a" } }, "unevaluatedProperties": { "$ref": "#/$defs/b" } }
        }
    });
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(126), close.repeat(126));
    for (schema, event) in [
        (chain(996, 2, &here).unwrap(), "1".to_owned()),
        (chain(600, 1, &below).unwrap(), deep("{\"a\":", "}")),
        (of(in_recursion.clone()), deep("{\"a\":", "}")),
        (of(in_recursion), deep("[", "]")),
    ] {
        let checking = move || _ = schema.check(event.as_bytes());
        std::thread::Builder::new().stack_size(1 << 20).spawn(checking).unwrap().join().unwrap();
    }
}
