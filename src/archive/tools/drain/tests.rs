//! A retired machine's data directory and an archive, both made by hand.

use base64::{Engine, engine::general_purpose::STANDARD};
use tempfile::TempDir;

use super::*;
use crate::{
    archive::{
        spool::segment::SegmentHeader,
        tools::{
            tests::{self as made, MadeArchive, TOPIC, compressed},
            verify::verify,
        },
    },
    position::{Timestamp, TopicIdentity},
};

const HOUR: &str = "2026-11-23T08:00:00Z";

struct Retired {
    dir: TempDir,
    archive: MadeArchive,
}

impl Retired {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("spool")).unwrap();
        Self { dir, archive: MadeArchive::new() }
    }

    /// A sealed segment `[x, end)`, with the records that [`MadeArchive::object`] writes.
    fn sealed(&self, x: u64, end: u64) -> PathBuf {
        self.sealed_with(x, end, |_| {})
    }

    fn sealed_with(&self, x: u64, end: u64, change: impl Fn(&mut SegmentHeader)) -> PathBuf {
        let line = |offset| format!("{{\"offset\":{offset},\"received\":\"{HOUR}\",\"event\":{{\"n\":{offset}}}}}\n");
        let data = compressed(&(x..end).map(line).collect::<String>());
        let mut header = SegmentHeader {
            version: segment::VERSION,
            topic: TOPIC.to_owned(),
            generation: 0,
            identity: made::identity(),
            archive: self.archive.config().archive.url,
            partition: Partition(0),
            chain_offset: Offset(x),
            end: Offset(end),
            first_offset: Offset(x),
            first_received: Timestamp(HOUR.parse::<chrono::DateTime<chrono::Utc>>().unwrap().timestamp_millis()),
            records: end - x,
            bytes: data.len() as u64,
            crc32c: crc32c::crc32c(&data),
        };
        change(&mut header);
        let folder = self.dir.path().join("spool").join(header.topic_name().to_string()).join("0");
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join(format!("{x:020}.zst"));
        fs::write(&path, data).unwrap();
        fs::write(path.with_extension("json"), segment::encode_header(&header).unwrap()).unwrap();
        path
    }

    fn drain(&self) -> Vec<Fate> {
        let mut fates = Vec::new();
        drain(&self.archive.reader(), self.dir.path(), |outcome| {
            let left = matches!(outcome.fate, Fate::Left(_));
            let header = outcome.file.with_extension("json");
            assert!(outcome.file.exists() == left && header.exists() == left, "{outcome:?}");
            fates.push(match &outcome.fate {
                Fate::Left(why) => Fate::Left(why.clone()),
                Fate::Sent => Fate::Sent,
                Fate::Archived => Fate::Archived,
            });
        })
        .unwrap();
        fates
    }

    /// Nothing was sent, and this is why.
    #[track_caller]
    fn stays(&self, word: &str) {
        let fates = self.drain();
        let [Fate::Left(why)] = fates.as_slice() else { panic!("{fates:?}") };
        assert!(why.contains(word), "{word:?} is not in {why}");
    }

    #[track_caller]
    fn archived(&self, records: u64) {
        let report = verify(&self.archive.reader(), &[], &indicatif::ProgressBar::hidden()).unwrap();
        assert!(report.ok && report.records() == records, "{report:?}");
    }
}

#[test]
fn segments_that_chain_are_sent_in_order_and_the_head_follows() {
    let retired = Retired::new();
    retired.archive.head(0, 0);
    retired.archive.object(0, 0, &[(0, HOUR)]);
    retired.sealed(1, 3);
    retired.sealed(3, 7);
    assert_eq!(retired.drain(), [Fate::Sent, Fate::Sent]);
    retired.archived(7);
    let head = fs::read_to_string(retired.archive.path("_chain/events/0.json")).unwrap();
    assert!(head.contains("\"end\":7") && head.contains("0-00000000000000000003"), "{head}");
    assert_eq!(retired.drain(), []);
}

#[test]
fn what_others_have_archived_is_removed_when_each_record_is_there() {
    let retired = Retired::new();
    retired.archive.head(0, 3);
    retired.archive.object(0, 0, &[(0, HOUR), (1, HOUR), (2, HOUR)]);
    retired.archive.object(0, 3, &[(3, HOUR), (4, HOUR)]);
    retired.sealed(0, 2);
    retired.sealed(2, 5);
    // A lost reply: its own object stands.
    retired.sealed(3, 5);
    retired.sealed(5, 6);
    assert_eq!(retired.drain(), [Fate::Archived, Fate::Archived, Fate::Archived, Fate::Sent]);
    retired.archived(6);
}

#[test]
fn a_segment_that_an_older_release_sealed_is_found_where_its_bytes_stand_as_raw() {
    // As commit da1f0d3 wrote them; the archive has the same records from a newer writer.
    let values = [r#"{"type":"a","n":1e400}"#, r#"{"type":"a","type":"b"}"#, r#"{"type":"a","x":"\ud800"}"#];
    let line = |offset: usize, rest: String| format!("{{\"offset\":{offset},\"received\":\"{HOUR}\",{rest}}}\n");
    let lines = |rest: &dyn Fn(&str) -> String| -> String {
        values.iter().enumerate().map(|(offset, value)| line(offset, rest(value))).collect()
    };
    let older = lines(&|value| format!("\"event\":{value}"));
    let newer = lines(&|value| format!("\"raw\":\"{}\"", STANDARD.encode(value)));
    for (sealed, stands, fate) in
        [(&older, &newer, true), (&newer, &older, true), (&older, &newer.replace("fQ==", "IH0="), false)]
    {
        let retired = Retired::new();
        retired.archive.head(0, 3);
        retired.archive.write(0, 0, &HOUR[..13], stands);
        let data = compressed(sealed);
        let path = retired.sealed_with(0, 3, |header| {
            (header.bytes, header.crc32c) = (data.len() as u64, crc32c::crc32c(&data));
        });
        fs::write(path, &data).unwrap();
        if fate {
            assert_eq!(retired.drain(), [Fate::Archived]);
        } else {
            retired.stays("holds another record");
        }
        retired.archived(3);
    }
}

#[test]
fn what_was_just_sent_counts_for_the_segments_behind_it() {
    let retired = Retired::new();
    retired.archive.head(0, 0);
    retired.sealed(0, 2);
    // From an earlier life of the machine, with other bounds.
    retired.sealed(1, 2);
    retired.sealed(2, 3);
    assert_eq!(retired.drain(), [Fate::Sent, Fate::Archived, Fate::Sent]);
    retired.archived(3);
}

#[test]
fn a_segment_with_a_record_that_the_archive_has_not_stays() {
    let retired = Retired::new();
    retired.archive.head(0, 3);
    retired.archive.object(0, 0, &[(0, HOUR), (2, HOUR)]);
    retired.sealed(0, 2);
    retired.stays("offsets 1 to 2 are not in the archive");
    retired.sealed(0, 5);
    retired.stays("offsets 1 to 5 are not in the archive");
    retired.archived(2);
}

#[test]
fn a_segment_with_a_record_that_differs_from_the_archives_stays() {
    let retired = Retired::new();
    retired.archive.head(0, 2);
    let text = format!("{{\"offset\":0,\"received\":\"{HOUR}\",\"event\":{{\"n\":7}}}}\n");
    retired.archive.write(0, 0, "2026-11-23T08", &text);
    retired.sealed(0, 1);
    retired.stays("offset 0 holds another record");
}

#[test]
fn a_segment_behind_a_break_stays_until_the_records_before_it_are_archived() {
    let retired = Retired::new();
    retired.archive.head(0, 0);
    retired.sealed(4, 6);
    retired.stays("offsets 0 to 4 come before it");
    retired.archive.object(0, 0, &[(0, HOUR), (3, HOUR)]);
    assert_eq!(retired.drain(), [Fate::Sent]);
    retired.archived(4);
}

#[test]
fn what_is_of_another_archive_or_topic_is_reported_and_not_sent() {
    let with = |change: fn(&mut SegmentHeader)| {
        let retired = Retired::new();
        retired.archive.head(0, 0);
        retired.sealed_with(0, 2, change);
        retired
    };
    with(|header| header.archive = "s3://elsewhere".to_owned()).stays("made for the archive s3://elsewhere");
    with(|header| header.identity = TopicIdentity("other".into())).stays("another topic of the same name");
    with(|header| header.topic = "other".to_owned()).stays("--set queue.topic=other");
    with(|header| header.generation = 2).stays("--set queue.generation=2");
    with(|header| header.partition = Partition(1))
        .stays("of events/1/00000000000000000000, which is not where it stands");
}

#[test]
fn a_folder_below_another_data_directory_is_another_archive() {
    let retired = Retired::new();
    retired.sealed_with(0, 2, |header| header.archive = "file:".to_owned());
    let mut config = retired.archive.config();
    config.archive.url = "file:".to_owned();
    config.data.dir = tempfile::tempdir().unwrap().keep();
    fs::create_dir_all(config.data.dir.join("archive")).unwrap();
    let runtime = crate::archive::tools::runtime().unwrap();
    let reader = crate::archive::tools::open(config, None, &runtime).unwrap();
    let mut fates = Vec::new();
    drain(&reader, retired.dir.path(), |outcome| fates.push(format!("{:?}", outcome.fate))).unwrap();
    assert!(fates.len() == 1 && fates[0].contains("--set data.dir="), "{fates:?}");
}

#[test]
fn what_cannot_be_read_stays_and_what_follows_it_does_not_chain() {
    let retired = Retired::new();
    retired.archive.head(0, 0);
    let damaged = retired.sealed(0, 2);
    retired.sealed(2, 3);
    fs::write(&damaged, b"x").unwrap();
    let fates = retired.drain();
    assert!(matches!(&fates[..], [Fate::Left(one), Fate::Left(_)] if one.contains("checksum")), "{fates:?}");
    fs::write(damaged.with_extension("json"), b"{").unwrap();
    let fates = retired.drain();
    assert!(
        matches!(&fates[..], [Fate::Left(one), Fate::Left(_)] if one.contains("header cannot be read")),
        "{fates:?}"
    );
}

#[test]
fn without_a_chain_nothing_is_begun() {
    let retired = Retired::new();
    retired.sealed(0, 2);
    retired.stays("has no chain of partition 0");
}

#[test]
fn a_directory_in_use_or_of_something_else_is_refused() {
    let retired = Retired::new();
    let refused = |dir: &Path| drain(&retired.archive.reader(), dir, |_| {}).unwrap_err().to_string();
    let lock = data_dir::lock(retired.dir.path()).unwrap();
    assert!(refused(retired.dir.path()).contains("in use by another ingestd"));
    drop(lock);
    let other = tempfile::tempdir().unwrap();
    assert!(refused(other.path()).contains("no data directory"));
    assert_eq!(fs::read_dir(other.path()).unwrap().count(), 0, "nothing is left there");
}
