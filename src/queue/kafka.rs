//! Kafka as the queue.
