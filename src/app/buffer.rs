//! The buffer in front of Kafka, where the configuration asks for one.

use std::sync::Arc;

use super::Daemon;
use crate::{
    config::{Config, OnUnavailable, QueueKind},
    log::buffer::{self, Buffer},
};

impl Daemon {
    /// Whether this process buffers events while Kafka is away. Workers share the front ends' configuration and have
    /// nothing to buffer.
    pub(super) fn buffers(&self, config: &Config) -> bool {
        let wanted = config.queue.on_unavailable == OnUnavailable::Buffer;
        wanted && config.queue.kind == QueueKind::Kafka && self.roles.ingest()
    }

    /// Opens the buffer; without one, makes sure that no earlier start left events in it.
    pub(super) fn open_buffer(&self, config: &Config) -> anyhow::Result<Option<Arc<Buffer>>> {
        let data_dir = &self.data_dir.path;
        if !self.buffers(config) {
            return buffer::refuse_left_over(data_dir).map(|()| None);
        }
        let (live, health, metrics) = (self.config.clone(), self.health.clone(), self.metrics.clone());
        Buffer::open(data_dir, live, health, metrics, self.supervision.escalations.clone()).map(Some)
    }
}
