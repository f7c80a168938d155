use super::*;

const HOUR: i64 = 3_600_000;
const NOW: Timestamp = Timestamp(1_795_420_800_000);

#[test]
fn a_refusal_says_which_times_are_taken() {
    let said = |from: i64, to: i64| {
        format!("Timestamp 1 of message with offset 0 is out of range. The timestamp should be within [{from}, {to}]")
    };
    let now = NOW.0 - 2 * HOUR;
    // As Kafka adds Long.MAX_VALUE to its clock.
    let taken = Taken::of(&said(now.wrapping_sub(i64::MAX), now + HOUR)).unwrap();
    assert_eq!(taken.misses(NOW), Some((Side::Ahead, HOUR)));
    assert_eq!(taken.misses(Timestamp(now)), None);
    let bounds = Bounds::by(|name| (name == "message.timestamp.after.max.ms").then_some("3600000"));
    assert_eq!((bounds.side(), taken.difference(bounds, NOW)), (Some(Side::Ahead), Some(2 * HOUR)));
    let (side, words) = taken.complaint("events", NOW).unwrap();
    assert_eq!(side, Side::Ahead);
    assert!(words.contains(" 1h later ") && words.contains("message.timestamp.after.max.ms"), "{words}");

    let taken = Taken::of(&said(NOW.0 + HOUR, (NOW.0 + 2 * HOUR).wrapping_add(i64::MAX))).unwrap();
    assert_eq!(taken.misses(NOW), Some((Side::Behind, HOUR)));
    assert_eq!(Taken::of("One or more records have been rejected"), None);
}

#[test]
fn a_topic_that_stamps_records_itself_or_has_no_bound_takes_any_time() {
    let bounds = |settings: &[(&'static str, &'static str)]| {
        Bounds::by(|name| settings.iter().find(|(known, _)| *known == name).map(|(_, value)| *value)).side()
    };
    let (after, before) = ("message.timestamp.after.max.ms", "message.timestamp.before.max.ms");
    assert_eq!(bounds(&[(after, "3600000"), (before, "9223372036854775807")]), Some(Side::Ahead));
    assert_eq!(bounds(&[(after, "9223372036854775807"), (before, "60000")]), Some(Side::Behind));
    assert_eq!(bounds(&[("message.timestamp.difference.max.ms", "1000")]), Some(Side::Ahead));
    assert_eq!(bounds(&[(after, "3600000"), ("message.timestamp.type", "LogAppendTime")]), None);
    assert_eq!(bounds(&[]), None);
    // As Kafka 3.9 describes a topic that has the old setting alone.
    let unset = "9223372036854775807";
    let old = [(after, unset), (before, unset), ("message.timestamp.difference.max.ms", "1000")];
    assert_eq!(bounds(&old), Some(Side::Ahead));
    assert_eq!(bounds(&[(after, "999999999999999"), (before, unset)]), None, "some 30,000 years");
}
