//! Archives with one damage each, made by hand.

use std::fs;

use indicatif::ProgressBar;

use super::{Fault, FaultKind, Report, Verification, verify};
use crate::{archive::tools::tests::MadeArchive, position::Offset};

const HOUR: &str = "2026-11-23T08:00:00Z";

/// Two objects, `[0, 2)` and `[2, 4)`, and a head.
fn whole() -> MadeArchive {
    let archive = MadeArchive::new();
    archive.object(0, 0, &[(0, HOUR), (1, HOUR)]);
    archive.object(0, 2, &[(2, HOUR), (3, "2026-11-22T00:00:00Z")]);
    archive.head(0, 4);
    archive
}

fn verified(archive: &MadeArchive) -> Report {
    verify(&archive.reader(), &[], &ProgressBar::hidden()).unwrap()
}

fn second() -> String {
    "topic=events/date=2026-11-23/hour=08/0-00000000000000000002.ndjson.zst".to_owned()
}

/// The one fault that is found.
#[track_caller]
fn only(archive: &MadeArchive, kind: FaultKind, word: &str) -> Fault {
    let report = verified(archive);
    let faults: Vec<_> =
        report.partitions.into_iter().flat_map(|partition| partition.faults).chain(report.faults).collect();
    let [fault] = faults.as_slice() else { panic!("not one fault: {faults:?}") };
    assert!(fault.kind == kind && fault.message.contains(word), "{word:?} is not in {fault:?}");
    assert!(!report.ok);
    fault.clone()
}

#[test]
fn a_whole_archive_has_no_fault() {
    let archive = whole();
    // A head may be old, the oldest objects may be gone, and offsets without records are no fault.
    archive.object(1, 10, &[(10, HOUR)]);
    archive.object(1, 11, &[(15, HOUR), (18, HOUR)]);
    archive.head(1, 11);
    archive.head(2, 7);
    let report = verified(&archive);
    assert!(report.ok && report.faults_in_all() == 0, "{report:?}");
    let [first, second, empty] = report.partitions.as_slice() else { panic!("{report:?}") };
    assert_eq!((first.objects, first.records, first.first_offset, first.end), (2, 4, Some(Offset(0)), Some(Offset(4))));
    assert_eq!((second.first_offset, second.end), (Some(Offset(10)), Some(Offset(19))));
    assert_eq!((second.holes_in_all, second.holes[0].from, second.holes[0].to), (1, Offset(11), Offset(15)));
    assert_eq!((empty.objects, empty.end, empty.head_end), (0, None, Some(Offset(7))));
}

#[test]
fn an_object_that_is_missing_within_a_chain_is_a_gap() {
    let archive = whole();
    archive.object(0, 4, &[(4, HOUR)]);
    fs::remove_file(archive.path(&second())).unwrap();
    only(&archive, FaultKind::Gap, "offsets 2 to 4");
}

#[test]
fn a_gap_is_believed_only_when_another_list_has_nothing_to_fill_it() {
    let archive = whole();
    archive.object(0, 4, &[(4, HOUR)]);
    let reader = archive.reader();
    // The second object came to stand in a folder that the first LIST had passed; one more came to stand at the end.
    let mut lists = 0;
    let list = async || {
        let mut listing = reader.list().await?;
        lists += 1;
        match lists {
            1 => drop(listing.objects.remove(1)),
            _ => drop(archive.object(0, 5, &[(5, HOUR)])),
        }
        Ok(listing)
    };
    let progress = ProgressBar::hidden();
    let report = reader.block_on(Verification::run(&reader, &[], &progress, list)).unwrap();
    assert!(report.ok && report.records() == 5, "{report:?}");
    assert_eq!(lists, 2);
}

#[test]
fn records_that_stand_twice_are_an_overlap() {
    let archive = whole();
    archive.object(0, 3, &[(3, HOUR)]);
    let fault = only(&archive, FaultKind::Overlap, "ends at 4");
    assert!(fault.key.unwrap().contains("0-00000000000000000003"));

    // Two objects at one position, under different hours.
    let archive = whole();
    archive.object(0, 2, &[(2, "2026-11-23T09:00:00Z"), (3, HOUR)]);
    only(&archive, FaultKind::Overlap, "no object ends at 2");
}

#[test]
fn every_flipped_byte_of_an_object_is_found() {
    let archive = whole();
    let path = archive.path(&second());
    let good = fs::read(&path).unwrap();
    // Behind the frame's header, of which parts decide memory and not content.
    for at in 6..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        fs::write(&path, bad).unwrap();
        let report = verified(&archive);
        let damaged = report.partitions[0].faults.iter().any(|fault| fault.kind == FaultKind::Damaged);
        assert!(damaged, "byte {at} of {}: {report:?}", good.len());
    }
}

#[test]
fn an_object_that_is_cut_or_empty_or_no_zstd_is_damaged() {
    let archive = whole();
    let path = archive.path(&second());
    let good = fs::read(&path).unwrap();
    for length in [0, 3, good.len() / 2, good.len() - 1] {
        fs::write(&path, &good[..length]).unwrap();
        let fault = only(&archive, FaultKind::Damaged, "");
        assert_eq!(fault.key, Some(second()));
    }
    fs::write(&path, b"{\"offset\":2}\n").unwrap();
    only(&archive, FaultKind::Damaged, "decompressed");
    fs::write(&path, [good.as_slice(), b"more"].concat()).unwrap();
    only(&archive, FaultKind::Damaged, "up to offset 3");
}

#[test]
fn the_end_of_a_chain_whose_last_object_is_damaged_is_not_guessed() {
    let archive = whole();
    let good = fs::read(archive.path(&second())).unwrap();
    fs::write(archive.path(&second()), &good[..good.len() - 1]).unwrap();
    assert_eq!(verified(&archive).partitions[0].end, None);
    // Nor is the next object's beginning held against it.
    archive.object(0, 9, &[(9, HOUR)]);
    only(&archive, FaultKind::Damaged, "");
}

#[test]
fn lines_that_are_none_are_counted_and_the_first_is_told() {
    let archive = whole();
    let good = "{\"offset\":2,\"received\":\"2026-11-23T08:00:00Z\",\"event\":1}";
    archive.write(0, 2, "2026-11-23T08", &format!("{good}\n\n{{\"offset\":3}}\n{}\n", good.replace(":2,", ":3,")));
    let fault = only(&archive, FaultKind::UnreadableLine, "line 2 cannot be read");
    assert_eq!(fault.lines, Some(2));
    archive.write(0, 2, "2026-11-23T08", &format!("{good}\n{}", good.replace(":2,", ":3,")));
    only(&archive, FaultKind::Damaged, "has no end");
}

#[test]
fn events_that_not_every_reader_takes_are_told_and_are_no_fault() {
    let archive = whole();
    let deep = format!("{}{}", "[".repeat(127), "]".repeat(127));
    let lines: String = [(2, "{\"a\":1}"), (3, "{\"a\":1e400}"), (4, &deep), (5, "null")]
        .iter()
        .map(|(offset, event)| format!("{{\"offset\":{offset},\"received\":\"{HOUR}\",\"event\":{event}}}\n"))
        .collect();
    archive.write(0, 2, &HOUR[..13], &lines);
    let report = verified(&archive);
    let partition = &report.partitions[0];
    assert!(report.ok && partition.faults.is_empty(), "{report:?}");
    let [events] = partition.unreadable_events.as_slice() else { panic!("{report:?}") };
    assert_eq!((partition.unreadable_events_in_all, events.lines, events.offset), (2, 2, Offset(3)));
    assert!(events.key == second() && events.message.contains("1e400"), "{events:?}");
}

#[test]
fn offsets_that_do_not_ascend_or_lie_below_the_object_are_told() {
    let archive = whole();
    archive.object(0, 2, &[(2, HOUR), (2, HOUR), (3, HOUR)]);
    only(&archive, FaultKind::Order, "line 2 holds offset 2 after 2");
    archive.object(0, 2, &[(1, HOUR), (3, HOUR)]);
    only(&archive, FaultKind::Outside, "line 1 holds offset 1, below the object's 2");
    // What lies beyond the end that the last line gives came before it.
    archive.object(0, 2, &[(5, HOUR), (3, HOUR)]);
    only(&archive, FaultKind::Order, "line 2 holds offset 3 after 5");
}

#[test]
fn a_name_that_contradicts_the_first_record_is_told() {
    let archive = whole();
    let renamed = archive.path("topic=events/date=2026-11-23/hour=09");
    fs::create_dir_all(&renamed).unwrap();
    fs::rename(archive.path(&second()), renamed.join("0-00000000000000000002.ndjson.zst")).unwrap();
    only(&archive, FaultKind::Name, "came at 2026-11-23T08:00:00");
}

#[test]
fn an_object_that_stands_in_no_chain_is_told() {
    for key in ["topic=events/date=2026-11-23/hour=08/0-2.ndjson.zst", "topic=events/a.txt", "_chain/events/a.json"] {
        let archive = whole();
        archive.put(key, b"x");
        assert_eq!(only(&archive, FaultKind::Stray, "").key.as_deref(), Some(key));
    }
}

#[test]
fn a_head_that_cannot_be_true_or_read_is_told() {
    let archive = whole();
    archive.head(0, 5);
    only(&archive, FaultKind::Head, "reaches 5, but its last object ends at 4");
    let path = archive.path("_chain/events/0.json");
    fs::write(&path, b"{\"version\":2,\"end\":4,\"key\":null,\"identity\":\"id\"}").unwrap();
    only(&archive, FaultKind::Head, "newer release");
    fs::write(&path, b"{").unwrap();
    only(&archive, FaultKind::Head, "cannot be read");
    archive.head(0, 4);
    archive.put("_chain/events/0.skip.json", b"{}");
    only(&archive, FaultKind::Head, "0.skip.json");
}

#[test]
fn only_the_partitions_that_are_asked_for_are_read() {
    let archive = whole();
    archive.object(1, 0, &[(0, HOUR), (0, HOUR)]);
    let report = verify(&archive.reader(), &[crate::position::Partition(0)], &ProgressBar::hidden()).unwrap();
    assert!(report.ok && report.partitions.len() == 1, "{report:?}");
}
