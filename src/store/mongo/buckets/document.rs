//! A bucket as a document, and the statement that keeps its fence.
//!
//! `_id` is `<topic>[@<generation>]/<partition>/<window start in ms>/<group>`, with the group's JSON text, or where that
//! is long its SHA-256 (the text then stands in the field `key`). In `group`, `%`, `.` and `$` in a field's name are
//! written `%25`, `%2E` and `%24`: MongoDB gives them a meaning of their own. Where an index of an operator takes no such
//! `group`, the text stands in `key` instead.

use mongodb::bson::{
    DateTime, Decimal128, Document, RawArrayBuf, RawBinaryRef, RawBson, RawBsonRef, RawDocument, RawDocumentBuf, cstr,
    doc, raw::CString, rawdoc, spec::BinarySubtype,
};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::state::{Change, State};
use crate::{
    measure::{Frequent, More, Plan, Shown, Sum},
    position::{Offset, Partition, Timestamp, TopicName},
    store::{
        BucketDelta, BucketKey, Counted, Fence, Removal, StoreOptions, Versions, group,
        mongo::{bson_number, database::StoreDatabase, indexes::Wanted},
        query::Bucket,
    },
};

/// The longest group text that stands in an `_id`, in bytes.
const LONGEST: usize = 512;
/// Statements in one command; the server takes 100,000.
const STATEMENTS: usize = 1000;
/// Bytes of one command's statements; the server takes 48,000,000 for a message and 16 MiB for a document.
const BYTES: usize = 8 << 20;

/// The buckets of one aggregate.
pub struct Buckets<'a> {
    options: &'a StoreOptions,
    versions: &'a Versions<String>,
    aggregate: usize,
    /// Names in its documents: of the group's values, and of what is measured.
    fields: Vec<CString>,
    measures: Vec<CString>,
}

impl<'a> Buckets<'a> {
    pub fn new(options: &'a StoreOptions, versions: &'a Versions<String>, aggregate: usize) -> Self {
        let Counted { aggregate: definition, plan, .. } = &versions.counted[aggregate];
        let fields = definition.group_by.iter().map(|field| escape(field)).collect();
        let measures = plan.outputs().iter().map(|output| escape(&output.name)).collect();
        Self { options, versions, aggregate, fields, measures }
    }

    /// Those of each aggregate.
    pub fn of_all(store: &'a StoreDatabase) -> impl Iterator<Item = Self> {
        (0..store.versions.len()).map(move |aggregate| Self::of(store, aggregate))
    }

    pub fn of(store: &'a StoreDatabase, aggregate: usize) -> Self {
        Self::new(&store.options, &store.versions, aggregate)
    }

    pub fn plan(&self) -> &'a Plan {
        &self.versions.counted[self.aggregate].plan
    }

    pub fn indexes() -> [Wanted; 2] {
        [
            Wanted::new("window_start", doc! { "window_start": 1 }),
            Wanted::new("fence", doc! { "topic": 1, "generation": 1, "partition": 1, "last_offset": 1 }),
        ]
    }

    /// What its collection is called by, and what was removed of it.
    pub fn name(&self) -> &'a str {
        &self.versions.places[self.aggregate]
    }

    /// Buckets of earlier generations have no fence that anybody asks for. Those of other topics are their own daemons'.
    pub fn removal_filter(&self, removal: &Removal) -> Document {
        let generation = i64::from(self.options.generation);
        doc! {
            "window_start": { "$lt": DateTime::from_millis(removal.before.0) },
            "topic": &self.options.topic,
            "$or": [
                {
                    "generation": generation, "partition": removal.partition.0,
                    "last_offset": { "$lt": removal.committed.as_i64() },
                },
                { "generation": { "$lt": generation } },
            ],
        }
    }

    pub fn collection(&self) -> String {
        format!("aggregate_{}", self.name())
    }

    /// Names a partition, in ids.
    pub fn source(options: &StoreOptions, partition: Partition) -> String {
        format!("{}/{partition}", TopicName { topic: &options.topic, generation: options.generation })
    }

    fn id_prefix(&self, partition: Partition, window_start: Timestamp) -> String {
        format!("{}/{}/", Self::source(self.options, partition), window_start.0)
    }

    pub fn id(&self, delta: &BucketDelta) -> String {
        self.id_of(delta.partition, &delta.key)
    }

    pub fn id_of(&self, partition: Partition, BucketKey { window_start, group }: &BucketKey) -> String {
        let prefix = self.id_prefix(partition, *window_start);
        if group.len() <= LONGEST {
            prefix + group
        } else {
            prefix + &format!("sha256:{}", hex::encode(Sha256::digest(group.as_bytes())))
        }
    }

    /// An upsert that adds the delta only where no other writer was in the meantime.
    pub fn statement(&self, change: &Change<'_>) -> RawDocumentBuf {
        let group = &change.delta.key.group;
        let values = group::values(group, self.fields.len()).into_iter().map(bson);
        let values: RawDocumentBuf = self.fields.iter().zip(values).collect();
        let key = (group.len() > LONGEST).then_some(&**group);
        self.upsert(change, Some(values), key)
    }

    /// The same with the group's text alone.
    pub fn plain_statement(&self, change: &Change<'_>) -> RawDocumentBuf {
        self.upsert(change, None, Some(&change.delta.key.group))
    }

    fn upsert(
        &self,
        Change { delta, id, state }: &Change<'_>,
        group: Option<RawDocumentBuf>,
        key: Option<&str>,
    ) -> RawDocumentBuf {
        let mut insert = rawdoc! {
            "window_start": DateTime::from_millis(delta.key.window_start.0),
            "topic": &*self.options.topic,
            "partition": delta.partition.0,
            "generation": i64::from(self.options.generation),
        };
        if let Some(group) = group {
            insert.append(cstr!("group"), group);
        }
        if let Some(key) = key {
            insert.append(cstr!("key"), key);
        }
        let mut set = rawdoc! { "last_offset": delta.last.as_i64() };
        // What was merged is what stands there: where nothing stood, no bucket is meant.
        let (fence, upsert) = match state {
            None => (rawdoc! { "$lt": delta.first.as_i64() }, true),
            Some(State { fence: None, .. }) => (rawdoc! { "$lt": 0_i64 }, true),
            Some(State { fence: Some(fence), .. }) => (rawdoc! { "$eq": fence.as_i64() }, false),
        };
        if let Some(State { more, bytes, .. }) = state {
            set.append(cstr!("state"), RawBinaryRef { subtype: BinarySubtype::Generic, bytes });
            set.append(cstr!("measures"), self.shown(more));
        }
        rawdoc! {
            "q": { "_id": &**id, "last_offset": fence },
            "u": {
                "$inc": { "count": i64::try_from(delta.measures.count).unwrap_or(i64::MAX) },
                "$set": set,
                "$setOnInsert": insert,
            },
            "upsert": upsert,
        }
    }

    /// What was measured beside the count, for those who read the collection: the daemon itself reads `state`.
    fn shown(&self, more: &More) -> RawDocumentBuf {
        let mut document = RawDocumentBuf::new();
        for (output, name) in self.plan().outputs().iter().zip(&self.measures) {
            let value = match more.show(output) {
                Shown::Nothing => RawBson::Null,
                Shown::Number(number) => decimal(number),
                Shown::Count(count) => RawBson::Int64(i64::try_from(count).unwrap_or(i64::MAX)),
                Shown::Top { values, .. } => RawBson::Array(values.iter().map(frequent).collect::<RawArrayBuf>()),
            };
            document.append(name, value);
        }
        if self.plan().has_numbers() {
            document.append(cstr!("inexact"), i64::try_from(more.inexact).unwrap_or(i64::MAX));
        }
        document
    }

    /// The buckets of a partition in some windows.
    pub fn windows_filter(&self, partition: Partition, windows: &[Timestamp]) -> Document {
        let windows: Vec<DateTime> = windows.iter().map(|window| DateTime::from_millis(window.0)).collect();
        doc! {
            "window_start": { "$in": windows },
            "topic": &self.options.topic,
            "generation": i64::from(self.options.generation),
            "partition": partition.0,
        }
    }

    pub fn fence_filter(&self, partition: Partition, committed: Offset) -> Document {
        doc! {
            "topic": &self.options.topic,
            "generation": i64::from(self.options.generation),
            "partition": partition.0,
            "last_offset": { "$gte": committed.as_i64() },
        }
    }

    /// As [`Buckets::fence`], of a document that was not found by [`Buckets::fence_filter`], and that it may never find.
    pub fn fence_of(&self, partition: Partition, document: &Document) -> Option<Fence> {
        let is_ours = document.get_str("topic").is_ok_and(|topic| topic == self.options.topic)
            && document.get_i64("generation").is_ok_and(|it| it == i64::from(self.options.generation))
            && document.get_i32("partition").is_ok_and(|it| it == partition.0);
        if is_ours { self.fence(partition, document) } else { None }
    }

    /// `None` when the document is no bucket of this partition.
    pub fn fence(&self, partition: Partition, bucket: &Document) -> Option<Fence> {
        let window_start = Timestamp(bucket.get_datetime("window_start").ok()?.timestamp_millis());
        let group = match bucket.get_str("key") {
            Ok(group) => group,
            Err(_) => bucket.get_str("_id").ok()?.strip_prefix(&self.id_prefix(partition, window_start))?,
        };
        let last_offset = Offset::from_kafka(bucket.get_i64("last_offset").ok()?)?;
        Some(Fence { aggregate: self.aggregate, key: BucketKey { window_start, group: group.into() }, last_offset })
    }
}

/// Cuts deltas into commands that the server takes.
pub fn split<'a, 'd>(deltas: &'a [&'d BucketDelta]) -> impl Iterator<Item = &'a [&'d BucketDelta]> {
    let mut rest = deltas;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = rest.iter().take(STATEMENTS).take_while(|delta| {
            // The group stands in the filter or in `key`, and in `group`, where an array of short values grows.
            let first = bytes == 0;
            bytes += 512 + 3 * delta.key.group.len();
            first || bytes <= BYTES
        });
        let (part, after) = rest.split_at(fits.count());
        rest = after;
        (!part.is_empty()).then_some(part)
    })
}

/// A number of more than 34 digits stands as its text.
fn decimal(number: Sum) -> RawBson {
    let (whole, mut fraction) = number.parts();
    let mut places = 17;
    while places > 0 && fraction.is_multiple_of(10) {
        (fraction, places) = (fraction / 10, places - 1);
    }
    let coefficient = whole.checked_mul(10_i128.pow(places)).and_then(|units| units.checked_add(fraction.into()));
    match coefficient.filter(|coefficient| coefficient.unsigned_abs() < 10_u128.pow(34)) {
        None => RawBson::String(number.to_string()),
        Some(coefficient) => {
            // IEEE 754, 3.5.2, as binary integers: the sign, 14 bits of exponent, and 113 of the coefficient.
            let exponent = u128::from(6176 - places) << 113;
            let bits = u128::from(coefficient < 0) << 127 | exponent | coefficient.unsigned_abs();
            RawBson::Decimal128(Decimal128::from_bytes(bits.to_le_bytes()))
        }
    }
}

fn frequent(item: &Frequent) -> RawDocumentBuf {
    rawdoc! { "value": bson(group::value(&item.value)), "count": i64::try_from(item.count).unwrap_or(i64::MAX) }
}

/// A bucket as a query reads it. Each look at a field by its name reads all of those before it, so they are passed once.
pub fn bucket(document: &RawDocument) -> Option<Bucket<'_>> {
    let (mut id, mut key, mut window_start, mut count, mut state) = (None, None, None, None, None);
    for element in document.iter_elements() {
        let element = element.ok()?;
        match (element.key().as_str(), element.value().ok()?) {
            ("_id", RawBsonRef::String(text)) => id = Some(text),
            ("key", RawBsonRef::String(text)) => key = Some(text),
            ("window_start", RawBsonRef::DateTime(start)) => window_start = Some(Timestamp(start.timestamp_millis())),
            ("count", RawBsonRef::Int32(number)) => count = Some(number.unsigned_abs().into()),
            ("count", RawBsonRef::Int64(number)) => count = Some(number.unsigned_abs()),
            ("state", RawBsonRef::Binary(binary)) => state = Some(binary.bytes),
            _ => {}
        }
    }
    // In an id, behind the topic, the partition and the window.
    let group = match key {
        Some(key) => key,
        None => id?.splitn(4, '/').nth(3)?,
    };
    Some(Bucket { window_start: window_start?, group, count: count?, state })
}

fn bson(value: Value) -> RawBson {
    match value {
        Value::Bool(bool) => RawBson::Boolean(bool),
        Value::Number(number) => bson_number(&number),
        Value::String(text) => RawBson::String(text),
        // No other value is one of a group.
        Value::Null | Value::Array(_) | Value::Object(_) => RawBson::Null,
    }
}

/// What has a meaning for MongoDB in a field's name, or has none.
fn escape(field: &str) -> CString {
    let escaped = field.replace('%', "%25").replace('.', "%2E").replace('$', "%24").replace('\0', "%00");
    // It fails for names with a zero byte.
    CString::try_from(escaped).unwrap_or_else(|_| cstr!("").into())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{config::AggregateConfig, measure::Measures};

    fn options() -> StoreOptions {
        StoreOptions {
            topic: "events".to_owned(),
            generation: 2,
            aggregates: vec![AggregateConfig::counting("a", Duration::from_secs(60), vec!["$x.y%".to_owned()])],
            events: false,
            events_ttl: Duration::from_secs(3600),
            timeout: Duration::from_secs(1),
        }
    }

    fn delta(group: &str) -> BucketDelta {
        BucketDelta {
            key: BucketKey { window_start: Timestamp(60_000), group: group.into() },
            partition: Partition(3),
            aggregate: 0,
            first: Offset(5),
            last: Offset(9),
            measures: Measures::of_count(4).into(),
        }
    }

    #[test]
    fn a_fence_has_the_key_that_was_written_however_long_it_is() {
        let options = options();
        let versions = Versions::configured(&options, |aggregate| Some(aggregate.name.clone())).load_full();
        let buckets = Buckets::new(&options, &versions, 0);
        for group in [r#"["a/b"]"#.to_owned(), "[1.50]".to_owned(), format!("[\"{}\"]", "x".repeat(1000))] {
            let delta = delta(&group);
            let change = Change { id: buckets.id(&delta), delta: &delta, state: None };
            let document = |statement: RawDocumentBuf| Document::try_from(statement).unwrap();
            let plain = document(buckets.plain_statement(&change));
            let insert = |statement: &Document| {
                let update = statement.get_document("u").unwrap();
                update.get_document("$setOnInsert").unwrap().clone()
            };
            assert!(!insert(&plain).contains_key("group") && insert(&plain).get_str("key").unwrap() == group);
            let statement = document(buckets.statement(&change));
            assert_eq!(statement.get("q"), plain.get("q"));
            let id = statement.get_document("q").unwrap().get_str("_id").unwrap();
            assert!(id.starts_with("events@2/3/60000/") && id.len() < 600, "{id}");
            let update = statement.get_document("u").unwrap();
            let mut document = update.get_document("$setOnInsert").unwrap().clone();
            assert_eq!(document.get_document("group").unwrap().keys().collect::<Vec<_>>(), ["%24x%2Ey%25"]);
            document.insert("_id", id);
            document.extend(update.get_document("$set").unwrap().clone());
            let fence = buckets.fence(Partition(3), &document).unwrap();
            assert_eq!((fence.key, fence.last_offset), (delta.key, Offset(9)));
        }
    }

    #[test]
    fn a_flush_is_cut_into_commands_that_the_server_takes() {
        let (small, large) = (delta("[1]"), delta(&"x".repeat(5 << 20)));
        let sizes = |deltas: &[&BucketDelta]| split(deltas).map(<[_]>::len).collect::<Vec<_>>();
        assert_eq!(sizes(&vec![&small; 2001]), [1000, 1000, 1]);
        assert_eq!(sizes(&[&small, &large, &large, &small]), [1, 1, 1, 1]);
        assert_eq!(sizes(&[]), [] as [usize; 0]);
    }

    #[test]
    fn a_sum_is_the_decimal_that_its_text_is() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..20_000 {
            let whole = random.i128(..) >> random.u32(0..128);
            let places = random.u32(1..18);
            let fraction = if random.bool() { 0 } else { random.u64(..10_u64.pow(places)) };
            let number = Sum::of_parts(whole / 1_000, fraction).unwrap();
            let text = number.to_string();
            let digits = text.bytes().filter(u8::is_ascii_digit).count();
            match decimal(number) {
                RawBson::Decimal128(decimal) => assert_eq!(decimal, text.parse::<Decimal128>().unwrap(), "{text}"),
                other => assert!(digits > 34 && other == RawBson::String(text.clone()), "{text} {other:?}"),
            }
            assert!(digits > 34 || matches!(decimal(number), RawBson::Decimal128(_)), "{text}");
        }
    }
}
