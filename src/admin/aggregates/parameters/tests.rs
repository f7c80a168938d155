//! Parameters as they are written, and the sentences on those that cannot be taken.

use super::*;

fn aggregate(window: u64) -> AggregateConfig {
    let group_by = ["client_id", "/a,b"].map(str::to_owned).to_vec();
    let mut aggregate = AggregateConfig::counting("logins", Duration::from_secs(window), group_by);
    let measures = "measures = [{ sum = \"/amount\" }, { top = \"ip\" }, { max = \"n\", as = \"-count\" }]";
    let measures: toml::Table = measures.parse().unwrap();
    aggregate.measures = measures["measures"].clone().try_into().unwrap();
    aggregate
}

fn at(text: &str) -> Timestamp {
    Timestamp(text.parse::<DateTime<Utc>>().unwrap().timestamp_millis())
}

const NOW: &str = "2026-11-23T08:30:15Z";

fn parse(aggregate: &AggregateConfig, parameters: &str) -> Result<Query, String> {
    Asked::parse(aggregate, parameters, Format::Json, NOW.parse().unwrap()).map(|asked| asked.query)
}

fn range_of(aggregate: &AggregateConfig, parameters: &str) -> (Timestamp, Timestamp) {
    let query = parse(aggregate, parameters).unwrap();
    (query.from, query.to)
}

#[test]
fn without_parameters_the_last_hour_with_the_present_window_is_asked_for() {
    let query = parse(&aggregate(60), "").unwrap();
    assert_eq!((query.from, query.to), (at("2026-11-23T07:31:00Z"), at("2026-11-23T08:31:00Z")));
    assert_eq!((query.limit, query.order, query.group_by), (DEFAULT_LIMIT, Order::Window, vec![0, 1]));
    assert_eq!(range_of(&aggregate(86400), ""), (at("2026-11-23T00:00:00Z"), at("2026-11-24T00:00:00Z")));
}

#[test]
fn relative_times_are_rounded_outwards_to_the_step() {
    let minutes = aggregate(60);
    for (parameters, from, to) in [
        ("from=-1h", "2026-11-23T07:30:00Z", "2026-11-23T08:31:00Z"),
        ("from=-1h&to=now", "2026-11-23T07:30:00Z", "2026-11-23T08:31:00Z"),
        ("from=-1h&step=1h", "2026-11-23T07:00:00Z", "2026-11-23T09:00:00Z"),
        ("from=-1h&step=all", "2026-11-23T07:30:00Z", "2026-11-23T08:31:00Z"),
        ("from=-90m&to=-30m&step=15m", "2026-11-23T07:00:00Z", "2026-11-23T08:15:00Z"),
        ("from=2026-11-23T07:00:00Z&step=1h", "2026-11-23T07:00:00Z", "2026-11-23T09:00:00Z"),
    ] {
        assert_eq!(range_of(&minutes, parameters), (at(from), at(to)), "{parameters}");
    }
    let mut days = aggregate(86400);
    days.time_zone = Some("Europe/Berlin".parse().unwrap());
    assert_eq!(range_of(&days, "from=-1d"), (at("2026-11-21T23:00:00Z"), at("2026-11-23T23:00:00Z")));
}

#[test]
fn the_last_window_of_all_can_be_asked_for_and_no_other_text_is_recommended() {
    let error = parse(&aggregate(60), "to=9999-12-31T23:59:30Z").unwrap_err();
    assert!(error.contains("9999-12-31T23:59:00Z") && !error.contains("10000"), "{error}");
    assert_eq!(range_of(&aggregate(60), "from=9999-12-31T23:59:00Z"), (at("9999-12-31T23:59:00Z"), OPEN_END));
    // What is to come, too.
    assert_eq!(range_of(&aggregate(60), "from=2026-11-23T08:31:00Z").1, OPEN_END);
    assert_eq!(range_of(&aggregate(60), "from=2026-11-23T08:30:00Z").1, at("2026-11-23T08:31:00Z"));
}

#[test]
fn each_bad_parameter_is_named() {
    for (parameters, parts) in [
        ("from=yesterday", ["from", "RFC 3339"]),
        ("from=-1", ["from", "such as -90s"]),
        ("from=2026-11-23T09:00:00+01:00", ["from", "%2B"]),
        ("to=2026-11-23T08:00:30Z", ["to", "2026-11-23T08:01:00Z"]),
        ("to=2026-11-23T08:00:00.0001Z", ["to", "window start"]),
        ("step=1h&from=2026-11-23T08:01:00Z", ["from", "2026-11-23T09:00:00Z"]),
        ("limit=0", ["limit", "1000000"]),
        ("limit=1000001", ["limit", "1000000"]),
        ("form=2026-11-23T08:00:00Z", ["form", "unknown"]),
        ("limit=1&limit=2", ["limit", "twice"]),
        ("from=2026-11-23T08:00:00Z&to=2026-11-23T07:00:00Z", ["from", "after to"]),
        ("step=90s", ["step", "multiple of the window, 1m"]),
        ("step=0s", ["step", "multiple"]),
        ("step=x", ["step", "all, for the whole range"]),
        ("step=200years", ["step", "above 100years"]),
        ("group_by=type", ["group_by", "grouped by client_id, /a,b"]),
        ("group_by=client_id,client_id", ["group_by", "twice"]),
        ("where=client_id", ["where", "field:value"]),
        ("where=type:a", ["where", "grouped by client_id"]),
        ("order=sum", ["order", "window, count, sum(/amount), -count"]),
        ("order=-top(ip)", ["order", "is a list"]),
        ("format=xml", ["format", "json, csv and ndjson"]),
        ("cursor=abc", ["cursor", "`next`"]),
    ] {
        let error = parse(&aggregate(60), parameters).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "{parameters}: {error}");
    }
}

#[test]
fn times_of_other_zones_and_the_largest_limit_are_taken() {
    let parameters = "from=2026-11-23T09:00:00%2B01:00&to=2026-11-23T09:00:00Z&limit=1000000";
    let query = parse(&aggregate(3600), parameters).unwrap();
    assert_eq!((query.from, query.to), (at("2026-11-23T08:00:00Z"), at("2026-11-23T09:00:00Z")));
    assert_eq!(query.limit, MAX_LIMIT);
}

#[test]
fn groups_conditions_and_orders_are_told_by_names() {
    let asked = |parameters: &str| parse(&aggregate(60), parameters).unwrap();
    for (parameters, expected) in [
        ("group_by=", &[][..]),
        ("group_by=/a,b", &[1]),
        ("group_by=client_id&group_by=/a,b", &[0, 1]),
        ("group_by=/a,b&group_by=client_id", &[1, 0]),
    ] {
        assert_eq!(asked(parameters).group_by, expected, "{parameters}");
    }
    let conditions = asked("where=client_id:a:b&where=/a,b:&where=client_id:c").conditions;
    let condition =
        |field, values: &[&str]| Condition { field, values: values.iter().map(|it| (*it).to_owned()).collect() };
    assert_eq!(conditions, [condition(0, &["a:b", "c"]), condition(1, &[""])]);
    let by = |number, descending| Order::By { number, descending };
    for (parameters, expected) in [
        ("order=window", Order::Window),
        ("order=count", by(Ordered::Count, false)),
        ("order=-sum(/amount)", by(Ordered::Measure(0), true)),
        // There is one of that name.
        ("order=-count", by(Ordered::Measure(2), false)),
        ("order=--count", by(Ordered::Measure(2), true)),
    ] {
        assert_eq!(asked(parameters).order, expected, "{parameters}");
    }
}

#[test]
fn a_cursor_goes_on_with_the_range_that_its_page_was_of_and_with_nothing_else() {
    let aggregate = aggregate(60);
    let page = Asked::parse(&aggregate, "from=-1h&limit=5", Format::Json, NOW.parse().unwrap()).unwrap();
    let place = Place {
        number: None,
        window_start: at("2026-11-23T08:00:00Z"),
        group: crate::store::query::GroupName::Text("[1,2]".to_owned()),
    };
    let cursor = page.cursor(place.clone());
    let later: DateTime<Utc> = "2026-11-23T09:00:00Z".parse().unwrap();
    let parse = |parameters: &str| {
        Asked::parse(&aggregate, &format!("{parameters}&cursor={cursor}"), Format::Json, later).map(|asked| asked.query)
    };
    let next = parse("from=-1h&limit=7&format=csv").unwrap();
    assert_eq!((next.from, next.to, next.after), (page.query.from, page.query.to, Some(place)));
    for other in
        ["from=-2h", "from=-1h&to=now", "from=-1h&step=2m", "from=-1h&order=count", "from=-1h&where=client_id:a"]
    {
        let error = parse(other).unwrap_err();
        assert!(error.contains("another query's"), "{other}: {error}");
    }
}

#[test]
fn a_made_up_cursor_is_refused_whatever_times_it_has() {
    let aggregate = AggregateConfig { time_zone: Some("Asia/Tokyo".parse().unwrap()), ..aggregate(24 * 3600) };
    let page = Asked::parse(&aggregate, "", Format::Json, NOW.parse().unwrap()).unwrap();
    let group = crate::store::query::GroupName::Text("[1,2]".to_owned());
    let place = Place { number: None, window_start: page.query.from, group };
    let ask = |from, to| {
        let cursor = Cursor { digest: page.digest.clone(), from, to, place: place.clone() }.encode();
        Asked::parse(&aggregate, &format!("cursor={cursor}"), Format::Json, NOW.parse().unwrap())
    };
    assert!(ask(page.query.from, OPEN_END).is_ok());
    for time in [i64::MIN, i64::MAX, OPEN_END.0 - 1, DateTime::<Utc>::MIN_UTC.timestamp_millis(), 1] {
        for (from, to) in [(Timestamp(time), page.query.to), (page.query.from, Timestamp(time))] {
            assert!(ask(from, to).unwrap_err().contains("another query's"), "{time}");
        }
    }
}
