//! What operators do with the letters in `<topic>.dlq`.
//!
//! A letter is closed by a *mark*: a record of the same key with the header `ingestd-mark` (`replayed` or `purged`) and
//! the letter's facts that filters look at. Marks are written in transactions; a replay's transaction holds the event
//! as well, so that a crash leaves both or neither.
//!
//! **Once, by whomever.** The transactional id is `<group>-dlq` for all. The one who takes it (`init_transactions`) fences
//! those who had it, after the coordinator has ended their transaction; only then the topic is read, with
//! `read_committed`. So what is seen as open was closed by nobody, and nobody else can close it any more.

pub mod records;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use rdkafka::{
    Offset as KafkaOffset,
    admin::AdminOptions,
    consumer::{BaseConsumer, Consumer},
    error::{KafkaError, KafkaResult},
    producer::BaseRecord,
    types::RDKafkaErrorCode as Code,
};

use self::records::{Place, Reader, Seen, mark_headers};
use crate::{
    config::{Config, LiveConfig},
    event,
    log::{
        dead_letters::{
            BATCH_BYTES, BATCH_LETTERS, DeadLetter, DeadLetters, Filter, FullLetter, LettersError, Listed, PATIENCE,
            Purge, Refused, Replay, Source, State, Summary,
            replay::{Admitted, ReplayCheck},
        },
        kafka::{
            client::{self, Admin, Context, list, no_failed, offsets, owned_headers},
            settings,
            transactions::{Failure, Transactions},
        },
    },
    names::SinkName,
    position::{Offset, Partition, Timestamp, TopicName},
};

/// Letters that one operation looks at: some 100 MiB of ids and places.
const MOST_LETTERS: usize = 500_000;
/// For one step of a transaction; the broker ends one that is open for longer than `transaction.timeout.ms`.
const STEP: Duration = Duration::from_secs(20);
/// For one question to the brokers when space is given back.
const QUESTION: Duration = Duration::from_secs(10);

/// Which records at or beyond `from` are letters. Blocks.
///
/// They were written after their records, so only what came since the record at `from` is read. Clocks may differ: an
/// hour is allowed for. However many letters that are, they are read to their end, because counting begins behind them;
/// brokers that fall silent end it.
pub(super) fn known(config: &Config, source: &Source, from: Offset) -> Result<BTreeSet<Offset>, LettersError> {
    const SKEW: i64 = 3_600_000;
    const WHOLE: Duration = Duration::from_secs(3600);
    let deadline = Instant::now() + PATIENCE;
    let reader = Reader::open(config)?;
    let mut known = BTreeSet::new();
    if reader.is_empty()? {
        return Ok(known);
    }
    // The log may have none of the first records any more, whose letters stand all the same.
    let since = if from == Offset(0) {
        None
    } else {
        let received = reader.received(&config.queue.topic, source.partition, from, deadline)?;
        let Some(received) = received else { return Ok(known) };
        Some(Timestamp(received.0.saturating_sub(SKEW)))
    };
    let name = TopicName { topic: &source.topic, generation: source.generation };
    let prefix = format!("{name}/{}/", source.partition);
    reader.scan(since, Instant::now() + WHOLE, |seen| {
        if let Some(offset) = seen.id.strip_prefix(&prefix).and_then(|offset| offset.parse().ok().map(Offset))
            && offset >= from
        {
            known.insert(offset);
        }
        Ok(())
    })?;
    Ok(known)
}

/// The letters of a topic.
pub struct KafkaLetters {
    config: LiveConfig,
}

/// What is known of a letter from one pass over the topic.
struct Known {
    /// The first record of its key that is a letter.
    place: Option<Place>,
    time: Timestamp,
    state: State,
}

/// A letter that an operation is about.
struct Chosen {
    id: String,
    place: Place,
    time: Timestamp,
    state: State,
}

impl KafkaLetters {
    pub fn new(config: LiveConfig) -> Self {
        Self { config }
    }

    /// The letters that a filter selects, whatever its limit, the oldest first.
    fn select(reader: &Reader, filter: &Filter, deadline: Instant) -> Result<Vec<Chosen>, LettersError> {
        let mut known: HashMap<Box<str>, Known> = HashMap::new();
        reader.scan(None, deadline, |seen: &Seen| {
            let facts = &seen.facts;
            if !filter.selects(&seen.id, facts.time, &facts.reason, facts.partition) {
                return Ok(());
            }
            if known.len() >= MOST_LETTERS && !known.contains_key(&*seen.id) {
                return Err(LettersError::Invalid(format!(
                    "there are more than {MOST_LETTERS} letters: narrow it with from, to, reason or partition"
                )));
            }
            let entry = known.entry(seen.id.as_str().into()).or_insert(Known {
                place: None,
                time: facts.time,
                state: State::Open,
            });
            match seen.mark {
                Some(state) if entry.state == State::Open => entry.state = state,
                Some(_) => {}
                None => entry.place = entry.place.or(Some(seen.place)),
            }
            Ok(())
        })?;
        let is_missing = |id: &&str| known.get(*id).is_none_or(|known| known.place.is_none());
        let missing: Vec<&str> = filter.ids.iter().map(String::as_str).filter(is_missing).collect();
        if !missing.is_empty() {
            return Err(LettersError::no_such(&missing));
        }
        let chosen = known.into_iter().filter(|(_, known)| filter.all || known.state == State::Open);
        let mut letters: Vec<Chosen> = chosen
            .filter_map(|(id, Known { place, time, state })| Some(Chosen { id: id.into(), place: place?, time, state }))
            .collect();
        letters.sort_unstable_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        Ok(letters)
    }
}

/// Leaves out what is beyond the limit; whether that is anything.
fn limit(letters: &mut Vec<Chosen>, limit: usize) -> bool {
    let is_beyond = letters.len() > limit;
    letters.truncate(limit);
    is_beyond
}

impl DeadLetters for KafkaLetters {
    fn list(&self, filter: &Filter) -> Result<Listed, LettersError> {
        let deadline = Instant::now() + PATIENCE;
        let reader = Reader::open(&self.config.load())?;
        // An id that is not there is an empty list, not an error.
        let any_id = Filter { ids: Vec::new(), ..filter.clone() };
        let mut letters = Self::select(&reader, &any_id, deadline)?;
        letters.retain(|letter| filter.ids.is_empty() || filter.ids.contains(&letter.id));
        let truncated = limit(&mut letters, filter.limit.unwrap_or(Filter::LIST_LIMIT));
        let mut dead_letters = Vec::with_capacity(letters.len());
        reader.visit(letters, deadline, |chosen, letter, omitted| {
            dead_letters.push(Summary::of(&letter, chosen.state, omitted));
            Ok(())
        })?;
        dead_letters.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        Ok(Listed { dead_letters, truncated })
    }

    fn show(&self, id: &str) -> Result<FullLetter, LettersError> {
        let deadline = Instant::now() + PATIENCE;
        let reader = Reader::open(&self.config.load())?;
        let letters = Self::select(&reader, &Filter::by_id(id), deadline)?;
        let mut found = None;
        reader.visit(letters, deadline, |chosen, letter, omitted| {
            found = Some(FullLetter::of(&letter, chosen.state, omitted));
            Ok(())
        })?;
        found.ok_or_else(|| LettersError::no_such(&[id]))
    }

    fn replay(&self, filter: &Filter, correction: Option<&[u8]>) -> Result<Replay, LettersError> {
        filter.allows(correction)?;
        let deadline = Instant::now() + PATIENCE;
        let config = self.config.load_full();
        let check = ReplayCheck::of(&config);
        // Before the topic is read: see above.
        let closer = Closer::new(&config)?;
        let reader = Reader::open(&config)?;
        let mut letters = Self::select(&reader, &filter.open_or_named(), deadline)?;
        let truncated = limit(&mut letters, filter.limit.unwrap_or(Filter::CHANGE_LIMIT));
        let mut done = Replay { truncated, ..Replay::default() };
        let (open, closed): (Vec<_>, Vec<_>) = letters.into_iter().partition(|letter| letter.state == State::Open);
        done.already.extend(closed.into_iter().map(|letter| letter.id));
        let (mut batch, mut bytes) = (Vec::new(), 0);
        let visited = reader.visit(open, deadline, |_, letter, omitted| {
            match check.admit(&letter, omitted, correction) {
                Ok(record) => {
                    bytes += record.size();
                    batch.push((letter, record));
                }
                Err(refused) => done.refused.push(refused),
            }
            if batch.len() >= BATCH_LETTERS || bytes >= BATCH_BYTES {
                closer.replay(std::mem::take(&mut batch), &mut done)?;
                bytes = 0;
            }
            Ok(())
        });
        done.truncated |= is_out_of_time(visited, deadline)?;
        closer.replay(batch, &mut done)?;
        Ok(done)
    }

    fn purge(&self, filter: &Filter) -> Result<Purge, LettersError> {
        let deadline = Instant::now() + PATIENCE;
        let config = self.config.load_full();
        let closer = Closer::new(&config)?;
        let reader = Reader::open(&config)?;
        let mut letters = Self::select(&reader, filter, deadline)?;
        let truncated = limit(&mut letters, filter.limit.unwrap_or(Filter::CHANGE_LIMIT));
        let mut done = Purge { truncated, ..Purge::default() };
        letters.retain(|letter| letter.state == State::Open);
        let mut batch = Vec::new();
        let visited = reader.visit(letters, deadline, |_, letter, _| {
            // Its bytes are not needed.
            batch.push(DeadLetter { key: None, value: None, headers: Vec::new(), ..letter });
            if batch.len() >= BATCH_LETTERS {
                closer.purge(&std::mem::take(&mut batch), &mut done)?;
            }
            Ok(())
        });
        done.truncated |= is_out_of_time(visited, deadline)?;
        closer.purge(&batch, &mut done)?;
        // What could not be freed now can be with the next purge.
        if let Err(error) = free(&config, &reader, deadline) {
            tracing::warn!(%error, "letters are purged, and their space is not given back yet");
        }
        Ok(done)
    }
}

/// Whether the time was up. What was done before that stands, and is reported.
fn is_out_of_time(visited: Result<(), LettersError>, deadline: Instant) -> Result<bool, LettersError> {
    match visited {
        Err(LettersError::Unavailable(_)) if Instant::now() >= deadline => Ok(true),
        visited => visited.map(|()| false),
    }
}

/// A letter to close, and the record that goes to the log with it.
type Closing<'c> = (&'c DeadLetter, Option<&'c Admitted>);

enum Outcome {
    Done,
    /// Kafka does not take what belongs to this letter; nothing of the transaction took effect.
    Refused {
        index: usize,
        code: Code,
    },
}

/// The right to close letters, until somebody else takes it.
struct Closer<'c> {
    transactions: Transactions,
    config: &'c Config,
    letters: String,
}

impl<'c> Closer<'c> {
    /// Fences everybody who had the right before; their transactions have ended when this returns.
    fn new(config: &'c Config) -> Result<Self, LettersError> {
        let transactions = Transactions::new(&settings::dead_letter_transactions(config))
            .map_err(|error| LettersError::Invalid(format!("queue.kafka: no producer can be made: {error}")))?;
        transactions.init(STEP, &|| true).map_err(|failure| explain("begin", failure))?;
        Ok(Self { transactions, config, letters: settings::dead_letter_topic(config) })
    }

    fn replay(&self, mut batch: Vec<(DeadLetter, Admitted)>, done: &mut Replay) -> Result<(), LettersError> {
        while !batch.is_empty() {
            let closings: Vec<Closing<'_>> = batch.iter().map(|(letter, record)| (letter, Some(record))).collect();
            match self.close(&closings, State::Replayed)? {
                Outcome::Done => done.replayed.extend(batch.drain(..).map(|(_, record)| record.id)),
                // Nothing was written; the others can be, without it.
                Outcome::Refused { index, code: Code::MessageSizeTooLarge } => {
                    let (_, record) = batch.remove(index);
                    let message = format!(
                        "larger than topic {} takes (its max.message.bytes): raise that, or correct the value",
                        self.config.queue.topic
                    );
                    let reason = event::Code::TooLarge.as_str().to_owned();
                    done.refused.push(Refused { id: record.id, reason, message });
                }
                Outcome::Refused { index, code } => {
                    let id = &batch[index].1.id;
                    return Err(LettersError::Unavailable(format!("Kafka does not take the record of {id}: {code}")));
                }
            }
        }
        Ok(())
    }

    fn purge(&self, batch: &[DeadLetter], done: &mut Purge) -> Result<(), LettersError> {
        if batch.is_empty() {
            return Ok(());
        }
        let closings: Vec<Closing<'_>> = batch.iter().map(|letter| (letter, None)).collect();
        match self.close(&closings, State::Purged)? {
            Outcome::Done => {
                done.purged.extend(batch.iter().map(DeadLetter::id));
                Ok(())
            }
            Outcome::Refused { index, code } => {
                let id = batch[index].id();
                Err(LettersError::Unavailable(format!("Kafka does not take the mark of {id}: {code}")))
            }
        }
    }

    /// Closes all of them, and appends their records, or does nothing.
    fn close(&self, closings: &[Closing<'_>], state: State) -> Result<Outcome, LettersError> {
        let transactions = &self.transactions;
        transactions.begin().map_err(|failure| explain("begin", failure))?;
        let mut unsent = None;
        let sent = closings.iter().enumerate().try_for_each(|(index, closing)| {
            self.send(index, *closing, state).map_err(|error| {
                if let KafkaError::MessageProduction(code) = error {
                    unsent = Some((index, code));
                }
                transactions.failure(error)
            })
        });
        let sent = sent.and_then(|()| transactions.settle(Instant::now() + STEP, &|| true));
        if let Some((index, code)) = transactions.take_failed().into_iter().next().or(unsent) {
            self.abort()?;
            return Ok(Outcome::Refused { index, code });
        }
        if let Err(failure) = sent {
            let explained = explain("write", failure);
            self.abort()?;
            return Err(explained);
        }
        if let Err(failure) = transactions.commit(STEP, &|| true) {
            let requires_abort = failure.requires_abort();
            let explained = explain("commit", failure);
            if requires_abort {
                self.abort()?;
            }
            return Err(explained);
        }
        Ok(Outcome::Done)
    }

    fn send(&self, index: usize, (letter, record): Closing<'_>, state: State) -> KafkaResult<()> {
        if let Some(Admitted { key, value, headers, received, .. }) = record {
            let headers = owned_headers(headers.iter().map(|(name, value)| (name.as_str(), value.as_deref())));
            let mut record = BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.config.queue.topic, index)
                .payload(value)
                .timestamp(received.0)
                .headers(headers);
            record.key = key.as_deref();
            self.transactions.send(record, Instant::now() + STEP)?;
        }
        let id = letter.id();
        let mark = BaseRecord::<[u8], [u8], _>::with_opaque_to(&self.letters, index)
            .key(id.as_bytes())
            // With a value, so that a compacted topic keeps it: it is no tombstone.
            .payload(state.as_str().as_bytes())
            .timestamp(Timestamp::now().0)
            .headers(mark_headers(letter, state));
        self.transactions.send(mark, Instant::now() + STEP)
    }

    fn abort(&self) -> Result<(), LettersError> {
        self.transactions.abort(STEP).map_err(|failure| explain("abort", failure))
    }
}

fn explain(what: &str, failure: Failure) -> LettersError {
    LettersError::Unavailable(match failure {
        Failure::Fenced(_) => "another operation on the dead letters of this topic took over: run it again, what was \
                               done is not done twice"
            .to_owned(),
        Failure::Failed { error, .. } => format!("Kafka does not {what} the transaction: {error}; run it again"),
        Failure::Late | Failure::Stopped => {
            let error = KafkaError::Flush(Code::OperationTimedOut);
            format!("Kafka does not {what} the transaction: {error}; run it again")
        }
    })
}

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

/// Gives the space of closed letters back: Kafka deletes a partition's records from its front.
///
/// A letter whose record may be read again (the aggregates' group has not committed beyond it) could be written again,
/// and without its mark it would be open again. So the front moves only over letters that are closed *and* settled, and
/// never between a letter and its mark.
fn free(config: &Config, reader: &Reader, deadline: Instant) -> Result<(), LettersError> {
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
    let fronts = fronts.into_iter().map(|(partition, front)| (partition, KafkaOffset::Offset(front)));
    let fronts = list(&topic, fronts).map_err(failed)?;
    let admin = Admin::open(&settings::client(config)).map_err(failed)?;
    let options = AdminOptions::new().request_timeout(Some(QUESTION));
    let deleted = admin.wait(admin.client.delete_records(&fronts, &options)).map_err(failed)?;
    no_failed(&deleted).map_err(failed)
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
    let moves = |partition, front| spans.iter().any(|(span, _)| span.partition == partition && span.first < front);
    fronts.retain(|partition, front| moves(*partition, *front));
    fronts
}

/// The record that a letter of this topic and generation came from.
fn source(config: &Config, id: &str) -> Option<(Partition, Offset)> {
    let rest = id.strip_prefix(&config.queue.name().to_string())?.strip_prefix('/')?;
    let (partition, offset) = rest.split_once('/')?;
    Some((Partition(partition.parse().ok()?), Offset(offset.parse().ok()?)))
}

/// Where the aggregates' group stands in these partitions.
fn committed(
    config: &Config,
    sources: impl Iterator<Item = (Partition, Offset)>,
) -> Result<BTreeMap<Partition, Offset>, LettersError> {
    let partitions: BTreeSet<i32> = sources.map(|(partition, _)| partition.0).collect();
    if partitions.is_empty() {
        return Ok(BTreeMap::new());
    }
    let mut settings = settings::client(config);
    settings.set("group.id", settings::group(config, SinkName::Aggregate));
    let consumer: BaseConsumer<Context> = client::open(&settings).map_err(failed)?;
    let partitions = partitions.into_iter().map(|partition| (partition, KafkaOffset::Invalid));
    let asked = list(&config.queue.topic, partitions).map_err(failed)?;
    Ok(offsets(&consumer.committed_offsets(asked, QUESTION).map_err(failed)?))
}

#[cfg(test)]
mod tests;
