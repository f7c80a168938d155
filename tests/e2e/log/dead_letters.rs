//! What each log does with dead letters, behind its seam: one suite, run on every backend.

use std::{collections::BTreeSet, sync::Arc};

use ingestd::internals::{
    log::dead_letters::{DeadLetter, DeadLetters, Filter, LettersError, Origin, Source},
    position::{Offset, Partition, Timestamp},
};
use tokio::runtime::{Builder, Runtime};
use uuid::Uuid;

use super::{
    conformance::{Backend, append},
    reader::Reader,
};

const VALID: &str = r#"{"type":"a","client_id":"c"}"#;

fn runtime() -> Runtime {
    Builder::new_current_thread().enable_all().build().unwrap()
}

/// A letter of the first partition.
pub fn letter(backend: &impl Backend, offset: u64, value: &[u8], headers: &[(&str, Option<&[u8]>)]) -> DeadLetter {
    DeadLetter {
        topic: backend.config().queue.topic.clone(),
        generation: 0,
        partition: Partition(0),
        origin: Origin::Record(Offset(offset)),
        received: Timestamp::now(),
        reason: "missing_type".to_owned(),
        message: "no type".to_owned(),
        time: Timestamp::now(),
        key: Some(b"\xff".to_vec()),
        value: Some(value.to_vec().into()),
        headers: headers.iter().map(|(name, value)| ((*name).to_owned(), value.map(<[u8]>::to_vec))).collect(),
    }
}

fn write(backend: &impl Backend, letters: Vec<DeadLetter>) {
    let writer = backend.dead_letter_writer();
    runtime().block_on(async { writer.write(letters).await }).unwrap();
}

fn known(backend: &impl Backend, from: u64) -> BTreeSet<Offset> {
    let source = Source { topic: backend.config().queue.topic.clone(), generation: 0, partition: Partition(0) };
    let writer = backend.dead_letter_writer();
    runtime().block_on(async { writer.known(source, Offset(from)).await }).unwrap()
}

/// A log that has records in the first partition, beside which letters stand.
fn filled(backend: &impl Backend) -> Arc<dyn DeadLetters> {
    assert_eq!(append(&*backend.appender(), 0..200).durable, 200);
    backend.dead_letters()
}

/// The values in the log of these numbers of records, sorted; those of [`filled`] left out.
fn appended(backend: &impl Backend, records: usize) -> Vec<String> {
    let mut reader = Reader::start(backend);
    reader.read(200 + records);
    let values = reader.close(Vec::new()).into_iter().map(|record| record.value);
    let mut values: Vec<_> = values.filter(|value| !value.starts_with(r#"{"type":"t","n":"#)).collect();
    values.sort();
    values
}

pub fn a_letter_is_listed_shown_and_replayed_once(backend: &impl Backend) {
    let letters = filled(backend);
    let one = letter(backend, 7, VALID.as_bytes(), &[("id", Some(b"abc"))]);
    // Written twice, it is one letter.
    write(backend, vec![one.clone(), one.clone()]);
    let listed = letters.list(&Filter::default()).unwrap().dead_letters;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!((listed[0].id.as_str(), listed[0].offset, listed[0].size), (&*one.id(), Some(Offset(7)), 28));
    let shown = letters.show(&one.id()).unwrap();
    assert_eq!((&*shown.summary.reason, &*shown.summary.message), ("missing_type", "no type"));
    assert_eq!((shown.value.as_deref(), shown.key_base64.as_deref()), (Some(VALID), Some("/w==")));
    assert_eq!(known(backend, 0), BTreeSet::from([Offset(7)]));
    assert_eq!(known(backend, 8), BTreeSet::new());

    assert_eq!(letters.replay(&Filter::default(), None).unwrap().replayed, [one.id()]);
    // Written again after a crash, it stays what it is.
    write(backend, vec![one.clone()]);
    let again = letters.replay(&Filter { all: true, ..Filter::by_id(&one.id()) }, None).unwrap();
    assert_eq!((again.replayed.len(), again.already.as_slice()), (0, [one.id()].as_slice()));
    assert_eq!(letters.list(&Filter::default()).unwrap().dead_letters, []);
    let all = letters.list(&Filter { all: true, ..Filter::default() }).unwrap().dead_letters;
    assert_eq!(all[0].state.as_str(), "replayed");
    assert_eq!(known(backend, 0), BTreeSet::from([Offset(7)]), "whatever became of it");
    assert_eq!(appended(backend, 1), [VALID]);
}

pub fn bytes_come_back_as_they_were_also_in_a_replay(backend: &impl Backend) {
    let letters = filled(backend);
    let bytes = b"\xff\x00\x80".as_slice();
    let one = letter(backend, 9, VALID.as_bytes(), &[("bin", Some(bytes)), ("null", None)]);
    let broken = letter(backend, 10, bytes, &[]);
    write(backend, vec![one.clone(), broken.clone()]);
    let shown = letters.show(&one.id()).unwrap();
    let headers: Vec<_> = shown.headers.into_iter().map(|header| header.into_bytes().unwrap()).collect();
    assert_eq!(headers, one.headers);
    assert_eq!(letters.show(&broken.id()).unwrap().value_base64.as_deref(), Some("/wCA"));
    let done = letters.replay(&Filter::default(), None).unwrap();
    assert_eq!((done.replayed.as_slice(), &*done.refused[0].reason), ([one.id()].as_slice(), "invalid_json"));
    let mut reader = Reader::start(backend);
    reader.read(201);
    let seen = reader.close(Vec::new());
    let record = seen.iter().find(|record| record.value == VALID).expect("it stands in the log");
    assert_eq!(record.headers[..2], one.headers);
    assert_eq!(record.header("ingestd-replayed"), Some(one.id().as_bytes()));
    assert_eq!(record.key.as_deref(), Some(b"c".as_slice()), "the key of now");
}

pub fn a_purged_letter_that_is_written_again_stays_away(backend: &impl Backend) {
    let letters = filled(backend);
    let one = letter(backend, 3, b"x", &[]);
    write(backend, vec![one.clone()]);
    let everything = Filter { to: Some(Timestamp(i64::MAX)), ..Filter::default() };
    assert_eq!(letters.purge(&everything).unwrap().purged, [one.id()]);
    // The aggregates' cursor is not beyond it: after a crash its record is read again.
    write(backend, vec![one.clone()]);
    assert_eq!(letters.list(&Filter::default()).unwrap().dead_letters, []);
    assert_eq!(known(backend, 0), BTreeSet::from([Offset(3)]), "its record is not counted either");
    assert_eq!(letters.purge(&everything).unwrap().purged, [""; 0]);
}

pub fn a_corrected_value_is_appended_and_one_that_is_no_event_is_refused(backend: &impl Backend) {
    let letters = filled(backend);
    let one = letter(backend, 5, br#"{"client_id":"c"}"#, &[]);
    write(backend, vec![one.clone()]);
    let by_id = Filter::by_id(&one.id());
    let done = letters.replay(&by_id, None).unwrap();
    assert_eq!((done.replayed.len(), &*done.refused[0].reason), (0, "missing_type"));
    let done = letters.replay(&by_id, Some(b"{")).unwrap();
    assert_eq!((done.replayed.len(), &*done.refused[0].reason), (0, "invalid_json"));
    assert_eq!(letters.list(&Filter::default()).unwrap().dead_letters.len(), 1, "it stays a letter");
    assert_eq!(letters.replay(&by_id, Some(VALID.as_bytes())).unwrap().replayed, [one.id()]);
    assert_eq!(appended(backend, 1), [VALID]);
}

pub fn what_was_no_record_is_kept_replayed_and_purged_and_stands_for_none(backend: &impl Backend) {
    let letters = filled(backend);
    let quarantine = backend.quarantine();
    let of_a_request = |value: &[u8]| DeadLetter {
        topic: format!("{}.ingest", backend.config().queue.topic),
        origin: Origin::Request(Uuid::now_v7()),
        key: None,
        ..letter(backend, 0, value, &[])
    };
    let (valid, broken, record) =
        (of_a_request(VALID.as_bytes()), of_a_request(b"{broken"), letter(backend, 3, b"x", &[]));
    let kept = runtime().block_on(async { quarantine.keep(vec![valid.clone(), broken.clone()]).await }).unwrap();
    assert_eq!(kept, [0; 0]);
    write(backend, vec![record.clone()]);
    assert_eq!(known(backend, 0), BTreeSet::from([Offset(3)]), "the record's letter alone");

    let listed = letters.list(&Filter { reason: Some("missing_type".to_owned()), ..Filter::default() }).unwrap();
    let offsets: BTreeSet<_> = listed.dead_letters.iter().map(|it| (it.id.clone(), it.offset)).collect();
    let expected = [(valid.id(), None), (broken.id(), None), (record.id(), Some(Offset(3)))];
    assert_eq!(offsets, BTreeSet::from(expected));
    let shown = letters.show(&broken.id()).unwrap();
    assert_eq!((shown.value.as_deref(), shown.summary.topic), (Some("{broken"), broken.topic.clone()));
    assert_eq!(shown.summary.offset, None);

    let both = Filter { ids: vec![valid.id(), broken.id()], all: true, ..Filter::default() };
    let done = letters.replay(&both, None).unwrap();
    assert_eq!((done.replayed.as_slice(), &*done.refused[0].reason), ([valid.id()].as_slice(), "invalid_json"));
    assert_eq!(letters.replay(&both, None).unwrap().already, [valid.id()]);
    let corrected = letters.replay(&Filter::by_id(&broken.id()), Some(VALID.as_bytes())).unwrap();
    assert_eq!(corrected.replayed, [broken.id()]);
    assert_eq!(appended(backend, 2), [VALID, VALID]);

    let third = of_a_request(b"7");
    runtime().block_on(async { quarantine.keep(vec![third.clone()]).await }).unwrap();
    assert_eq!(letters.purge(&Filter::by_id(&third.id())).unwrap().purged, [third.id()]);
    let open = letters.list(&Filter::default()).unwrap().dead_letters;
    assert_eq!(open.iter().map(|it| it.id.clone()).collect::<Vec<_>>(), [record.id()]);
}

pub fn a_letter_that_there_is_not_is_said_and_nothing_is_changed(backend: &impl Backend) {
    let letters = filled(backend);
    let one = letter(backend, 5, VALID.as_bytes(), &[]);
    write(backend, vec![one.clone()]);
    let missing = format!("{}/0/77", backend.config().queue.topic);
    let of = |error: Option<LettersError>| match error {
        Some(LettersError::NotFound(why)) => assert!(why.contains(&missing), "{why}"),
        other => panic!("{other:?}"),
    };
    of(letters.show(&missing).err());
    let both = Filter { ids: vec![one.id(), missing.clone()], all: true, ..Filter::default() };
    of(letters.replay(&both, None).err());
    of(letters.purge(&both).err());
    let listed = letters.list(&Filter::default()).unwrap().dead_letters;
    assert_eq!(listed.iter().map(|letter| letter.id.clone()).collect::<Vec<_>>(), [one.id()]);
}
