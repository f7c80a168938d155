//! A race: create-only PUTs of one new key that come at the same time, of which exactly one may win.
//!
//! Two one after the other show only that the store looks before it writes. Many stores look, then take the body, then
//! write; between the two another PUT may do the same, and the later one overwrites. So the PUTs of a race are held back
//! before their last byte until all have come so far (`client`). The object is larger than a packet, each has bytes of its
//! own, and afterwards those of the winner must stand.

use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use futures::future;
use object_store::{Error, PutMode, PutOptions, PutPayload, path::Path};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{
    archive::Archive,
    chain_files::json,
    client::{Gate, HeldBack},
    errors::{ProbeError, failed},
};

/// Of each object that is put.
const BYTES: usize = 20 * 1024;
/// For each of them, where `upload.timeout` is less: most of it is waiting for the others.
const TIME: Duration = Duration::from_secs(20);
/// Rounds without a verdict, after which the store's answer is the error.
const UNCLEAR: usize = 3;

/// How hard the store is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Race {
    /// At the same time.
    pub puts: usize,
    /// One key each.
    pub rounds: usize,
}

impl Race {
    /// Once for an archive, and by each `check --connect`.
    pub const USUAL: Self = Self { puts: 16, rounds: 4 };
    /// For a store that is not known yet.
    pub const THOROUGH: Self = Self { puts: 64, rounds: 32 };
}

/// What is kept of a race that the store has passed, in `_chain/race.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Passed {
    version: u32,
    time: DateTime<Utc>,
    puts: usize,
    rounds: usize,
    /// Where the store was asked: an archive that is moved elsewhere is another store's.
    endpoint: Option<String>,
}

/// One PUT's outcome.
#[derive(Debug)]
enum Outcome {
    Won,
    Refused,
    Failed(Error),
}

/// What one round showed.
#[derive(Debug)]
enum Verdict {
    OneWon,
    Broken(String),
    /// Too few answers to say.
    Unclear(Error),
}

impl Archive {
    /// The race of this archive, unless it was run there before.
    pub(super) async fn race_once(&self) -> Result<(), ProbeError> {
        // Of one process: the archive's folder is no other's, and a file system's links are atomic.
        if self.local.is_some() || self.has_passed().await? {
            return Ok(());
        }
        self.race(Race::USUAL).await?;
        let Race { puts, rounds } = Race::USUAL;
        let passed = Passed { version: 1, time: Utc::now(), puts, rounds, endpoint: self.endpoint.clone() };
        Ok(self.put(&result(), json(&passed), PutMode::Overwrite).await.map(drop)?)
    }

    async fn has_passed(&self) -> Result<bool, ProbeError> {
        let passed = self.find(&result()).await?;
        // One that cannot be read says nothing.
        let passed = passed.and_then(|passed| serde_json::from_slice::<Passed>(&passed).ok());
        Ok(passed.is_some_and(|passed| passed.endpoint == self.endpoint))
    }

    /// Runs a race, whatever is known. Its objects stay, `_chain/race-…`, since nothing is ever deleted.
    ///
    /// # Errors
    /// [`ProbeError`]: the first round that more than one PUT won ends it.
    pub async fn race(&self, Race { puts, rounds }: Race) -> Result<(), ProbeError> {
        let mut unclear = 0;
        let mut round = 1;
        while round <= rounds {
            match self.round(puts).await? {
                Verdict::OneWon => round += 1,
                Verdict::Broken(what) => return Err(ProbeError::Race { puts, round, rounds, what }),
                Verdict::Unclear(error) => {
                    unclear += 1;
                    if unclear == UNCLEAR {
                        return Err(ProbeError::Store(error));
                    }
                }
            }
        }
        Ok(())
    }

    async fn round(&self, puts: usize) -> Result<Verdict, ProbeError> {
        let key = Path::from(format!("_chain/race-{}", Uuid::now_v7().simple()));
        let (gate, bodies) = (Gate::new(puts), bodies(puts));
        let put = async |body: &Bytes| {
            let mut options = PutOptions::from(PutMode::Create);
            options.extensions.insert(HeldBack { body: body.clone(), gate: gate.clone() });
            let outcome =
                async { self.store().await?.put_opts(&key, PutPayload::from_bytes(body.clone()), options).await };
            match Self::within_time(self.timeout.max(TIME), outcome).await {
                Ok(_) => Outcome::Won,
                Err(Error::AlreadyExists { .. } | Error::Precondition { .. }) => Outcome::Refused,
                Err(error) => Outcome::Failed(error),
            }
        };
        let outcomes = future::join_all(bodies.iter().map(put)).await;
        let stands = self.find(&key).await?.map(|stands| bodies.iter().position(|body| *body == stands));
        Ok(judge(outcomes, stands))
    }
}

fn result() -> Path {
    Path::from("_chain/race.json")
}

/// Each begins with its number, and is filled so that no two are alike anywhere.
fn bodies(puts: usize) -> Vec<Bytes> {
    let body = |put: usize| {
        let mut body =
            format!("ingestd: PUT {put} of {puts} create-only ones of this key at the same time\n").into_bytes();
        body.resize(BYTES, b'0' + (put % 64) as u8);
        Bytes::from(body)
    };
    (0..puts).map(body).collect()
}

/// `stands` is whose bytes do: `Some(None)` for nobody's.
fn judge(outcomes: Vec<Outcome>, stands: Option<Option<usize>>) -> Verdict {
    let won = |(put, outcome): (usize, &Outcome)| matches!(outcome, Outcome::Won).then_some(put);
    let winners: Vec<usize> = outcomes.iter().enumerate().filter_map(won).collect();
    let refused = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Refused)).count();
    let what = match (winners.as_slice(), stands) {
        ([_, _, ..], _) => return Verdict::Broken(format!("{} were answered with success", winners.len())),
        // Killed in between, perhaps; it is not what a race is about.
        ([_], None) => {
            "one of many create-only PUTs of one new key was answered with success, and no object stands there"
        }
        ([won], Some(stands)) if stands != Some(*won) => {
            return Verdict::Broken("one was answered with success, and the bytes of another stand there".to_owned());
        }
        // Half of them, at least, have said that they came too late.
        ([_], _) if refused * 2 >= outcomes.len() => return Verdict::OneWon,
        ([_], _) => "it refused too few of many create-only PUTs of one new key",
        ([], _) => "it took none of many create-only PUTs of one new key",
    };
    let error = outcomes.into_iter().find_map(|outcome| match outcome {
        Outcome::Failed(error) => Some(error),
        Outcome::Won | Outcome::Refused => None,
    });
    Verdict::Unclear(error.unwrap_or_else(|| failed(what)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(outcomes: &str, stands: Option<Option<usize>>) -> char {
        let outcome = |c: char| match c {
            'W' => Outcome::Won,
            'R' => Outcome::Refused,
            _ => Outcome::Failed(Error::NotImplemented { operation: String::new(), implementer: String::new() }),
        };
        match judge(outcomes.chars().map(outcome).collect(), stands) {
            Verdict::OneWon => '1',
            Verdict::Broken(_) => 'x',
            Verdict::Unclear(_) => '?',
        }
    }

    #[test]
    fn exactly_one_may_win_and_its_bytes_must_stand() {
        assert_eq!(verdict("RWRR", Some(Some(1))), '1');
        assert_eq!(verdict("RWRF", Some(Some(1))), '1');
        assert_eq!(verdict("RWRW", Some(Some(1))), 'x');
        assert_eq!(verdict("RWRR", Some(Some(0))), 'x');
        assert_eq!(verdict("RWRR", Some(None)), 'x', "bytes that nobody put");
        assert_eq!(verdict("RWRR", None), '?', "the store was killed, or loses what it has taken");
        assert_eq!(verdict("RWFF", Some(Some(1))), '?', "the others may never have come");
        assert_eq!(verdict("RRRR", Some(Some(1))), '?', "the winner's answer was lost, or 409 means something else");
        assert_eq!(verdict("FFFF", None), '?');
    }

    #[test]
    fn no_two_bodies_are_alike() {
        let bodies = bodies(64);
        let mut different = bodies.clone();
        different.sort();
        different.dedup();
        assert_eq!(different.len(), bodies.len());
        assert!(bodies.iter().all(|body| body.len() == BYTES));
    }
}
