//! A client that lost its way to the brokers for good, told from brokers that are away.
//!
//! When a broker stops, the brokers that it names last may be none, and librdkafka forgets all that it knew. It then
//! goes back to `bootstrap.servers`, yet was seen to stay without any broker for minutes after Kafka was back, while
//! every new client was answered at once. So whoever is left without answers asks by a new client, from time to time:
//! when that one is answered, the old one has to be replaced.

use std::time::{Duration, Instant};

use rdkafka::{ClientConfig, config::FromClientConfigAndContext, consumer::BaseConsumer, consumer::Consumer};

use crate::log::kafka::{identity::topic_identity, logging::Logging};

/// A new client asks at most so often.
const EVERY: Duration = Duration::from_secs(4);
/// What the old one may take to notice that the brokers are back: twice its longest pause between two connections.
const OWN_TIME: Duration = Duration::from_secs(4);
/// The new client's question; it has to connect first.
const DEADLINE: Duration = Duration::from_secs(3);

/// The questions of one client that went unanswered.
#[derive(Debug, Default)]
pub(super) struct Reconnect {
    /// When a new client asked last.
    asked: Option<Instant>,
    /// When one was answered first.
    found: Option<Instant>,
}

impl Reconnect {
    pub fn answered(&mut self) {
        *self = Self::default();
    }

    /// A question was not answered. Whether the client is stranded; `is_answered` asks by a new one, and may block.
    pub fn unanswered(&mut self, now: Instant, is_answered: impl FnOnce() -> bool) -> bool {
        let too_early = self.asked.is_some_and(|asked| now.duration_since(asked) < EVERY);
        let soon = self.found.is_some_and(|found| now.duration_since(found) < OWN_TIME);
        if too_early || soon {
            return false;
        }
        self.asked = Some(now);
        if !is_answered() {
            self.found = None;
            return false;
        }
        self.found.replace(now).is_some()
    }
}

/// Whether a new client is told the topic's identity.
pub(super) fn a_new_client_is_answered(settings: &ClientConfig, topic: &str) -> bool {
    let client: Result<BaseConsumer<Logging>, _> = BaseConsumer::from_config_and_context(settings, Logging::default());
    client.is_ok_and(|client| topic_identity(client.client(), topic, DEADLINE).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_stranded_when_new_ones_are_answered_for_longer_than_it_needs_to_find_out() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut stranded = Reconnect::default();
        assert!(!stranded.unanswered(at(0), || false), "the brokers are away for everybody");
        assert!(!stranded.unanswered(at(1), || panic!("asked again at once")));
        assert!(!stranded.unanswered(at(5), || true), "they are back; the client has its own time to find out");
        assert!(!stranded.unanswered(at(7), || panic!("asked before that is over")));
        assert!(!stranded.unanswered(at(10), || false), "they went again");
        assert!(!stranded.unanswered(at(14), || true));
        assert!(stranded.unanswered(at(18), || true));
        stranded.answered();
        assert!(!stranded.unanswered(at(19), || true), "an answer begins it all anew");
    }
}
