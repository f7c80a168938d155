//! Gives the space of closed letters back: Kafka deletes a partition's records from its front.
//!
//! A letter whose record may be read again (the aggregates' group has not committed beyond it) could be written again,
//! and without its mark it would be open again. So the front moves only over letters that are closed *and* settled, and
//! never between a letter and its mark.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::{Duration, Instant},
};

use rdkafka::{
    Offset as KafkaOffset, TopicPartitionList,
    admin::{AdminClient, AdminOptions},
    config::FromClientConfigAndContext,
    consumer::{BaseConsumer, Consumer},
};

use super::{
    MOST_LETTERS,
    reader::{Place, Reader, Seen},
};
use crate::{
    config::Config,
    log::{
        dead_letters::LettersError,
        kafka::{logging::Logging, settings},
    },
    names::SinkName,
};

const DEADLINE: Duration = Duration::from_secs(10);

/// The records of one letter: the letter, its repetitions, its marks.
#[derive(Debug, Clone, Copy)]
struct Span {
    partition: i32,
    first: i64,
    last: i64,
    closed: bool,
    /// Its records stand in one partition.
    whole: bool,
}

/// Deletes what may go.
pub(super) fn free(config: &Config, reader: &Reader, deadline: Instant) -> Result<(), LettersError> {
    let mut letters: HashMap<Box<str>, Span> = HashMap::new();
    reader.scan(None, deadline, |seen: &Seen| {
        if letters.len() >= MOST_LETTERS && !letters.contains_key(&*seen.id) {
            return Err(LettersError::Unavailable(format!("there are more than {MOST_LETTERS} letters")));
        }
        let Place { partition, offset } = seen.place;
        let span = letters.entry(seen.id.as_str().into()).or_insert(Span {
            partition,
            first: offset,
            last: offset,
            closed: false,
            whole: true,
        });
        span.whole &= span.partition == partition;
        span.last = span.last.max(offset);
        span.closed |= seen.mark.is_some();
        Ok(())
    })?;
    let committed = committed(config, letters.keys().filter_map(|id| source(config, id)))?;
    let settled = |id: &str| match source(config, id) {
        Some((partition, offset)) => committed.get(&partition).is_some_and(|position| offset < *position),
        // Of another topic or generation, which is not read any more.
        None => true,
    };
    let spans: Vec<(Span, bool)> =
        letters.iter().map(|(id, span)| (*span, span.closed && span.whole && settled(id))).collect();
    let fronts = fronts(&spans);
    if fronts.is_empty() {
        return Ok(());
    }
    let topic = settings::dead_letter_topic(config);
    let mut list = TopicPartitionList::new();
    for (partition, front) in &fronts {
        list.add_partition_offset(&topic, *partition, KafkaOffset::Offset(*front)).map_err(failed)?;
    }
    let admin: AdminClient<Logging> =
        AdminClient::from_config_and_context(&settings::client(config), Logging::default()).map_err(failed)?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(failed)?;
    let options = AdminOptions::new().request_timeout(Some(DEADLINE));
    let deleted = runtime.block_on(admin.delete_records(&list, &options)).map_err(failed)?;
    deleted.elements().iter().try_for_each(|element| element.error()).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> LettersError {
    LettersError::Unavailable(error.to_string())
}

/// Up to where each partition can be deleted; `true` says of a letter that it may go.
fn fronts(spans: &[(Span, bool)]) -> BTreeMap<i32, i64> {
    let mut fronts: BTreeMap<i32, i64> = BTreeMap::new();
    for (span, _) in spans {
        let front = fronts.entry(span.partition).or_default();
        *front = (*front).max(span.last + 1);
    }
    // A letter whose records stand in several partitions holds all of these up, wherever they are.
    if spans.iter().any(|(span, _)| !span.whole) {
        return BTreeMap::new();
    }
    for (span, _) in spans.iter().filter(|(_, goes)| !goes) {
        let front = fronts.entry(span.partition).or_default();
        *front = (*front).min(span.first);
    }
    // A front never stands between a letter and its mark.
    let mut moved = true;
    while moved {
        moved = false;
        for (span, _) in spans {
            let front = fronts.entry(span.partition).or_default();
            if span.first < *front && *front <= span.last {
                *front = span.first;
                moved = true;
            }
        }
    }
    let starts: HashSet<(i32, i64)> =
        spans.iter().map(|(span, _)| (span.partition, span.first)).filter(|(p, first)| fronts[p] > *first).collect();
    fronts.retain(|partition, _| starts.iter().any(|(with, _)| with == partition));
    fronts
}

/// The record that a letter of this topic and generation came from.
fn source(config: &Config, id: &str) -> Option<(i32, i64)> {
    let rest = id.strip_prefix(&config.queue.name().to_string())?.strip_prefix('/')?;
    let (partition, offset) = rest.split_once('/')?;
    Some((partition.parse().ok()?, offset.parse().ok()?))
}

/// Where the aggregates' group stands in these partitions.
fn committed(config: &Config, sources: impl Iterator<Item = (i32, i64)>) -> Result<HashMap<i32, i64>, LettersError> {
    let partitions: HashSet<i32> = sources.map(|(partition, _)| partition).collect();
    if partitions.is_empty() {
        return Ok(HashMap::new());
    }
    let mut settings = settings::client(config);
    settings.set("group.id", settings::group(config, SinkName::Aggregate));
    let consumer: BaseConsumer<Logging> =
        BaseConsumer::from_config_and_context(&settings, Logging::default()).map_err(failed)?;
    let mut list = TopicPartitionList::new();
    for partition in partitions {
        list.add_partition(&config.queue.topic, partition);
    }
    let answer = consumer.committed_offsets(list, DEADLINE).map_err(failed)?;
    let elements = answer.elements();
    let offsets = elements.iter().filter_map(|element| match element.offset() {
        KafkaOffset::Offset(offset) => Some((element.partition(), offset)),
        _ => None,
    });
    Ok(offsets.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(first: i64, last: i64, goes: bool) -> (Span, bool) {
        (Span { partition: 0, first, last, closed: goes, whole: true }, goes)
    }

    fn front(spans: &[(Span, bool)]) -> Option<i64> {
        fronts(spans).get(&0).copied()
    }

    #[test]
    fn the_front_moves_over_closed_letters_up_to_the_first_open_one() {
        assert_eq!(front(&[span(0, 2, true), span(1, 3, true), span(5, 5, false)]), Some(5));
        assert_eq!(front(&[span(0, 2, true), span(1, 3, true)]), Some(4));
        assert_eq!(front(&[span(0, 0, false), span(1, 3, true)]), None);
        assert_eq!(front(&[]), None);
    }

    #[test]
    fn the_front_never_stands_between_a_letter_and_its_mark() {
        // The mark of the first stands behind an open letter, and the second's behind the first.
        assert_eq!(front(&[span(1, 6, true), span(0, 2, true), span(4, 4, false)]), None);
        assert_eq!(front(&[span(0, 1, true), span(2, 6, true), span(4, 4, false)]), Some(2));
    }
}
