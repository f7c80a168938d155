//! Kafka as the log.
//!
//! - [`settings`] turns our configuration into librdkafka's; the promises of this daemon are in it.
//! - [`topic`] makes sure before the start that the topic can hold what we accept; [`identity`] says which topic it is.
//! - [`appender`] writes; `broker_status` knows whether the brokers take it, and closes the door for events when not: by
//!   what `probe` asks them when records stay `unanswered`, for which `writable` has the rule. `placement` tells a key's
//!   partition, `clock` whether the brokers take our time.
//! - [`source`] reads: `group` answers rebalances, `commits` commits what the sink confirmed, with its
//!   `commit_metadata`, `offsets` asks the brokers where the group and the log stand, `topic_watch` whether the topic is
//!   still the same, `partitions` holds what is delivered, `delivery` cuts it into batches, `ownership` knows whether that
//!   is the whole topic, `empty_ends` which ends of a log hold no records, `unowned` which partitions nobody in the group reads, `source_status`
//!   what is wrong.
//! - `reconnect` tells a client that lost its way to the brokers from brokers that are away; such a client is replaced.
//! - [`dead_letters`] is what operators do with records that cannot be counted; its `writer` keeps them.
//!
//! Every client of librdkafka that a process holds, with the thread of ours that drives it:
//!
//! | client | thread | group | `settings` | why it is one of its own |
//! | --- | --- | --- | --- | --- |
//! | producer of events | `kafka-producer` | | `producer` | it is polled for acknowledgements, whatever else waits |
//! | scout | `kafka-probe` | | `client` | a producer's questions wait behind its records |
//! | consumer of a sink, one each | `kafka-archive`, `kafka-aggregate`; questions on `kafka-offsets`, `kafka-commit` | `<group>-<sink>`, static | `consumer` | each sink has a position of its own |
//! | topic watch | `kafka-watch` | | `client` | a consumer's connection may wait behind a fetch |
//! | producer of dead letters | rdkafka's polling thread, from the first letter on | | `dead_letter_producer` | its queue is small, and a letter that fails must not be fatal to events |
//! | producer of the forwarder | `forwarder`, with a buffer | | `forwarder` | a transactional id is one client's |
//! | reader of the forwarder's position | `forwarder` | its transactional id, without members | `forwarded_position` | a position is read by a consumer of that group |
//!
//! For moments only: the administrator of topics at the start (`client`), a reader of a log's end (`kafka-empty-end`,
//! `dead_letter_reader`), a new client that is asked whether the brokers answer (`reconnect`, `client`), a reader of the letters of a partition that is
//! assigned (`dead_letter_reader`), a member that makes a
//! group divide its partitions anew (`kafka-rejoin`, `consumer` without its instance id), and those of the operator's commands:
//! `dead_letter_reader`, and `dead_letter_transactions` for replays and purges.
//!
//! librdkafka's threads and ours never meet an arbiter: whatever blocks here has a thread of its own and a deadline.

pub mod appender;
mod broker_status;
pub(super) mod clock;
mod commit_metadata;
mod commits;
pub mod dead_letters;
mod delivery;
mod empty_ends;
mod group;
mod headers;
pub mod identity;
pub(super) mod logging;
mod offsets;
mod ownership;
mod partitions;
mod placement;
mod probe;
mod producer;
mod reconnect;
pub mod settings;
pub mod source;
mod source_status;
pub mod topic;
mod topic_watch;
mod unanswered;
mod unowned;
mod writable;

pub use appender::KafkaAppender;
pub use broker_status::UNANSWERED_REQUEST;
pub use dead_letters::{KafkaLetters, writer::KafkaDeadLetters};
pub use topic::{TopicError, check, prepare};
pub use topic_watch::TopicWatches;
