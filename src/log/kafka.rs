//! Kafka as the log.
//!
//! - [`settings`] turns our configuration into librdkafka's; the promises of this daemon are in it.
//! - `client` is what all clients share: their context, and the questions that the `rdkafka` crate does not wrap.
//! - [`topic`] makes sure before the start that the topic can hold what we accept, and watches whether it is still the same.
//! - [`appender`] writes, by `outgoing` a request at a time; `brokers` knows whether the brokers take it, and closes the door for events when not: by what
//!   `probe` asks them, also whether they take our time.
//! - [`source`] reads: `group` answers rebalances, commits what the sink confirmed, and knows which partitions are this
//!   process's, another's or nobody's; `offsets` asks the brokers where the group and the log stand; `partitions` holds
//!   what is delivered, and what is wrong; `fetched` takes many records from librdkafka
//!   at once; by `shared` one source reads for both sinks.
//! - [`dead_letters`] is what operators do with records that cannot be counted; its `records` are how these are kept.
//! - `replays` is where archived records are replayed to.
//! - `transactions` is a transactional producer, for replays, for purges of dead letters and for the buffer's forwarder.
//!
//! Every client of librdkafka that a process holds, with the thread of ours that drives it:
//!
//! | client | thread | group | `settings` | why it is one of its own |
//! | --- | --- | --- | --- | --- |
//! | producer of events | `kafka-producer` | | `producer` | it is polled for acknowledgements, whatever else waits |
//! | scout | `kafka-probe` | | `client` | a producer's questions wait behind its records |
//! | consumer of a sink, one each | `kafka-archive`, `kafka-aggregate`; questions on `kafka-offsets`, `kafka-commit` | `<group>-<sink>`, static | `consumer` | each sink has a position of its own |
//! | topic watch | `kafka-watch` | | `client` | a consumer's connection may wait behind a fetch |
//! | producer of dead letters (the aggregates' and the ingestor's) | rdkafka's polling thread, from the first letter on | | `dead_letter_producer` | its queue is small, and a letter that fails must not be fatal to events |
//! | producer of the forwarder | `forwarder`, with a buffer | | `forwarder` | a transactional id is one client's |
//! | reader of the forwarder's position | `forwarder` | its transactional id, without members | `forwarded_position` | a position is read by a consumer of that group |
//!
//! For moments only: the administrator of topics at the start (`client`), a reader of a log's end (`kafka-tail`,
//! `dead_letter_reader`), a new client that is asked whether the brokers answer (`client`), one that compares the clocks by
//! a record that is refused (`client`), a reader of the letters of a partition that is assigned (`dead_letter_reader`), a
//! member that makes a group divide its partitions anew (`kafka-rejoin`, `consumer` without its instance id), and those of
//! the operator's commands: `dead_letter_reader`, `dead_letter_transactions` for replays and purges, and after a purge an
//! administrator and one that asks where the aggregates' group stands (`client`); `replayer` and `replays_reader` for a replay
//! from the archive.
//!
//! librdkafka's threads and ours never meet an arbiter: whatever blocks here has a thread of its own and a deadline.

pub mod appender;
mod brokers;
pub(super) mod client;
pub mod dead_letters;
mod fetched;
mod group;
mod offsets;
mod outgoing;
mod partitions;
pub(super) mod probe;
mod replays;
pub mod settings;
mod shared;
pub mod source;
mod status;
mod tail;
pub mod topic;
pub(super) mod transactions;

pub use appender::KafkaAppender;
pub use brokers::UNANSWERED_REQUEST;
pub use dead_letters::{KafkaLetters, records::KafkaDeadLetters};
pub use replays::KafkaReplays;
pub use shared::{SharedReader, SharedReads};
pub use topic::{TopicError, TopicWatches, check, prepare};
