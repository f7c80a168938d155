//! What operators do with the letters in `<topic>.dlq`.
//!
//! A letter is closed by a *mark*: a record of the same key with the header `ingestd-mark` (`replayed` or `purged`) and
//! the letter's facts that filters look at. Marks are written in transactions; a replay's transaction holds the event
//! as well, so that a crash leaves both or neither.
//!
//! **Once, whoever tries.** The transactional id is `<group>-dlq` for all. Whoever takes it (`init_transactions`) fences
//! those who had it, after the coordinator has ended their transaction; only then the topic is read, with
//! `read_committed`. So what is seen as open was closed by nobody, and nobody else can close it any more.

mod free;
mod reader;
mod transactions;
pub mod writer;

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::{Duration, Instant},
};

use rdkafka::types::RDKafkaErrorCode as Code;

use crate::{
    config::{Config, LiveConfig},
    event,
    log::dead_letters::{
        BATCH_BYTES, BATCH_LETTERS, DeadLetter, DeadLetters, Filter, FullLetter, LettersError, Listed, PATIENCE, Purge,
        Refused, Replay, Source, State, Summary,
        replay::{Admitted, ReplayCheck},
    },
    position::{Offset, Timestamp, TopicName},
};

use reader::{Place, Reader, Seen};
use transactions::{Closing, Outcome, Transactions};

/// Letters that one operation looks at: some 100 MiB of ids and places.
const MOST_LETTERS: usize = 500_000;

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
    let Some(received) = reader.received(&config.queue.topic, source.partition, from, deadline)? else {
        return Ok(known);
    };
    let name = TopicName { topic: &source.topic, generation: source.generation };
    let prefix = format!("{name}/{}/", source.partition);
    reader.scan(Some(Timestamp(received.0.saturating_sub(SKEW))), Instant::now() + WHOLE, |seen| {
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

struct Selected {
    letters: Vec<Chosen>,
    truncated: bool,
}

impl KafkaLetters {
    pub fn new(config: LiveConfig) -> Self {
        Self { config }
    }

    fn select(
        reader: &Reader,
        filter: &Filter,
        default_limit: usize,
        deadline: Instant,
    ) -> Result<Selected, LettersError> {
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
        let limit = filter.limit.unwrap_or(default_limit);
        let truncated = letters.len() > limit;
        letters.truncate(limit);
        Ok(Selected { letters, truncated })
    }
}

impl DeadLetters for KafkaLetters {
    fn list(&self, filter: &Filter) -> Result<Listed, LettersError> {
        let deadline = Instant::now() + PATIENCE;
        let reader = Reader::open(&self.config.load())?;
        // An id that is not there is an empty list, not an error.
        let ids = Filter { ids: Vec::new(), ..filter.clone() };
        let by_id = |id: &str| filter.ids.is_empty() || filter.ids.iter().any(|wanted| wanted == id);
        let scope = if filter.ids.is_empty() { filter } else { &ids };
        let mut selected = Self::select(&reader, &Filter { limit: Some(usize::MAX), ..scope.clone() }, 0, deadline)?;
        selected.letters.retain(|letter| by_id(&letter.id));
        let limit = filter.limit.unwrap_or(Filter::LIST_LIMIT);
        let truncated = selected.letters.len() > limit;
        selected.letters.truncate(limit);
        let mut dead_letters = Vec::with_capacity(selected.letters.len());
        reader.visit(selected.letters, deadline, |chosen, letter, omitted| {
            dead_letters.push(Summary::of(&letter, chosen.state, omitted));
            Ok(())
        })?;
        dead_letters.sort_by(|a, b| (a.time, &a.id).cmp(&(b.time, &b.id)));
        Ok(Listed { dead_letters, truncated })
    }

    fn show(&self, id: &str) -> Result<FullLetter, LettersError> {
        let deadline = Instant::now() + PATIENCE;
        let reader = Reader::open(&self.config.load())?;
        let selected = Self::select(&reader, &Filter::by_id(id), 1, deadline)?;
        let mut found = None;
        reader.visit(selected.letters, deadline, |chosen, letter, omitted| {
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
        let transactions = Transactions::begin(&config)?;
        let reader = Reader::open(&config)?;
        let selected = Self::select(&reader, &filter.open_or_named(), Filter::CHANGE_LIMIT, deadline)?;
        let mut done = Replay { truncated: selected.truncated, ..Replay::default() };
        let (open, closed): (Vec<_>, Vec<_>) =
            selected.letters.into_iter().partition(|letter| letter.state == State::Open);
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
                replay_batch(&transactions, std::mem::take(&mut batch), &mut done, &config)?;
                bytes = 0;
            }
            Ok(())
        });
        done.truncated |= is_out_of_time(visited, deadline)?;
        replay_batch(&transactions, batch, &mut done, &config)?;
        Ok(done)
    }

    fn purge(&self, filter: &Filter) -> Result<Purge, LettersError> {
        let deadline = Instant::now() + PATIENCE;
        let config = self.config.load_full();
        let transactions = Transactions::begin(&config)?;
        let reader = Reader::open(&config)?;
        let selected = Self::select(&reader, filter, Filter::CHANGE_LIMIT, deadline)?;
        let mut done = Purge { truncated: selected.truncated, ..Purge::default() };
        let open: Vec<_> = selected.letters.into_iter().filter(|letter| letter.state == State::Open).collect();
        let mut batch = Vec::new();
        let visited = reader.visit(open, deadline, |_, letter, _| {
            // Its bytes are not needed.
            batch.push(DeadLetter { key: None, value: None, headers: Vec::new(), ..letter });
            if batch.len() >= BATCH_LETTERS {
                purge_batch(&transactions, std::mem::take(&mut batch), &mut done)?;
            }
            Ok(())
        });
        done.truncated |= is_out_of_time(visited, deadline)?;
        purge_batch(&transactions, batch, &mut done)?;
        // What could not be freed now can be with the next purge.
        if let Err(error) = free::free(&config, &reader, deadline) {
            tracing::warn!(%error, "letters are purged, and their space is not given back yet");
        }
        Ok(done)
    }
}

/// What was done before the time was up stands, and is told.
fn is_out_of_time(visited: Result<(), LettersError>, deadline: Instant) -> Result<bool, LettersError> {
    match visited {
        Err(LettersError::Unavailable(_)) if Instant::now() >= deadline => Ok(true),
        visited => visited.map(|()| false),
    }
}

fn replay_batch(
    transactions: &Transactions,
    mut batch: Vec<(DeadLetter, Admitted)>,
    done: &mut Replay,
    config: &Config,
) -> Result<(), LettersError> {
    while !batch.is_empty() {
        let closings = batch.iter().map(|(letter, record)| Closing { letter, record: Some(record) });
        match transactions.close(&closings.collect::<Vec<_>>(), State::Replayed)? {
            Outcome::Done => {
                done.replayed.extend(batch.drain(..).map(|(_, record)| record.id));
            }
            // Nothing was written; the others can be, without it.
            Outcome::Refused { index, code: Code::MessageSizeTooLarge } => {
                let (_, record) = batch.remove(index);
                let message = format!(
                    "larger than topic {} takes (its max.message.bytes): raise that, or correct the value",
                    config.queue.topic
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

fn purge_batch(transactions: &Transactions, batch: Vec<DeadLetter>, done: &mut Purge) -> Result<(), LettersError> {
    if batch.is_empty() {
        return Ok(());
    }
    let closings: Vec<_> = batch.iter().map(|letter| Closing { letter, record: None }).collect();
    match transactions.close(&closings, State::Purged)? {
        Outcome::Done => {
            done.purged.extend(batch.iter().map(DeadLetter::id));
            Ok(())
        }
        Outcome::Refused { index, code } => {
            Err(LettersError::Unavailable(format!("Kafka does not take the mark of {}: {code}", batch[index].id())))
        }
    }
}

/// By the partition of `<topic>.dlq`, each place with what is wanted there.
fn by_partition(chosen: Vec<Chosen>) -> BTreeMap<i32, BTreeMap<i64, Chosen>> {
    let mut places: BTreeMap<i32, BTreeMap<i64, Chosen>> = BTreeMap::new();
    for letter in chosen {
        places.entry(letter.place.partition).or_default().insert(letter.place.offset, letter);
    }
    places
}
