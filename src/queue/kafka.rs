//! Kafka as the queue.
//!
//! - [`settings`] turns our configuration into librdkafka's; the promises of this daemon are in it.
//! - [`topic`] makes sure before the start that the topic can hold what we accept; [`identity`] says which topic it is.
//! - [`appender`] writes; `link` knows whether the brokers take it, and closes the door for events when not (or
//!   tells the [`buffer`](super::buffer), where there is one).
//! - [`source`] reads: `group` answers rebalances, `commits` commits what the sink confirmed, `survey` asks the brokers
//!   where the group and the log stand, `partitions` holds what is delivered, `delivery` cuts it into batches.
//! - [`dead_letters`] keeps what cannot be parsed.
//!
//! librdkafka's threads and ours never meet an arbiter: whatever blocks here has a thread of its own and a deadline.

/// The name of this dependency in readiness.
pub const DEPENDENCY: &str = "kafka";

pub mod appender;
mod commits;
pub mod dead_letters;
mod delivery;
mod group;
mod headers;
pub mod identity;
mod link;
pub(super) mod logging;
mod partitions;
pub mod settings;
pub mod source;
mod survey;
pub mod topic;

pub use appender::KafkaAppender;
pub use dead_letters::KafkaDeadLetters;
pub use topic::{TopicError, TopicReady, check, prepare};
