//! The buffer's write side: in front of Kafka's.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::log::{
    Appender, Full, Publish,
    buffer::switch::{InFlight, Rule, Switch, Way},
    embedded::EmbeddedLog,
    kafka::KafkaAppender,
};

/// Sends each request the way that the switch says.
pub(super) struct BufferingAppender {
    pub switch: Arc<Switch>,
    pub kafka: KafkaAppender,
    pub buffer: EmbeddedLog,
}

impl Appender for BufferingAppender {
    fn append(&self, publish: Publish, from: usize) -> Result<(), Full> {
        let way = if from > 0 {
            // Its beginning went straight.
            self.switch.update(Rule::readmit);
            Way::Straight
        } else {
            self.switch.update(|rule| rule.admit(Instant::now()))
        };
        match way {
            Way::Straight => {
                let in_flight = InFlight(self.switch.clone());
                self.kafka.append_straight(publish, from, Some(in_flight))
            }
            // It is kept, and comes again before all others.
            Way::Held => Err(Full { publish, next: from }),
            Way::Buffer => {
                publish.ticket.buffered();
                self.buffer.append(publish, 0).inspect_err(|_| {
                    // The writer never got it.
                    self.switch.update(|rule| {
                        let end = rule.forwarded();
                        rule.answered(1, end);
                    });
                })
            }
        }
    }

    fn flush(&self, timeout: Duration) -> Result<(), usize> {
        let deadline = Instant::now() + timeout;
        let straight = self.kafka.flush(timeout).err().unwrap_or(0);
        // What waits for an fsync takes moments, whatever Kafka does.
        let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_secs(1));
        let buffered = self.buffer.flush(left).err().unwrap_or(0);
        match straight + buffered {
            0 => Ok(()),
            unanswered => Err(unanswered),
        }
    }
}
