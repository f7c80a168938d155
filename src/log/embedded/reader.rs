//! The reading side of the embedded log for one sink: a thread that waits for the log's end to move.

use std::{
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, TryRecvError, bounded, unbounded};

use super::{
    EmbeddedLog, Write,
    read::{Bounds, Damaged, LogReader},
    schema,
};
use crate::{
    config::LiveConfig,
    log::{
        Assignment, Batch, ByteBudget, Epoch, SourceCommand, SourceEvent, SourceEvents, SourceHandle,
        record::RecordBuffer,
    },
    names::SinkName,
    position::{Offset, Partition},
    supervise,
};

/// The embedded log's only partition.
pub(super) const PARTITION: Partition = Partition(0);
/// How soon a command is taken while the log is idle.
const IDLE: Duration = Duration::from_millis(50);
/// How long records gather after the first that comes.
const GATHER: Duration = Duration::from_millis(2);
/// How soon to look again for room in the byte budget: a few batches' worth of a sink's work.
const NO_ROOM: Duration = Duration::from_millis(2);
/// How often the consumer is sent the log's end.
const TELL_END: Duration = Duration::from_millis(200);
/// The pause after a failed read.
const RETRY: Duration = Duration::from_secs(1);

struct Reader {
    log: EmbeddedLog,
    sink: SinkName,
    records: LogReader,
    config: LiveConfig,
    budget: ByteBudget,
    events: SourceEvents,
    commands: Receiver<SourceCommand>,
    /// `None` while the partition is held.
    delivering: Option<(Epoch, Offset)>,
    paused: bool,
    failing: bool,
    /// Bytes of the last batch: the next one is probably as long, and does not have to be moved while it grows.
    usual: usize,
    /// The log's end as the consumer knows it.
    told_end: Offset,
    told_at: Instant,
}

impl EmbeddedLog {
    /// Starts the reading side of one sink on a thread of its own.
    ///
    /// # Errors
    /// When the log cannot be opened for reading.
    pub fn source(
        &self,
        sink: SinkName,
        config: LiveConfig,
        budget: ByteBudget,
        events: SourceEvents,
    ) -> anyhow::Result<SourceHandle> {
        let (sender, commands) = unbounded();
        let reader = Reader {
            log: self.clone(),
            sink,
            records: self.reader()?,
            config,
            budget,
            events,
            commands,
            delivering: None,
            paused: false,
            failing: false,
            usual: 0,
            told_end: Offset(0),
            told_at: Instant::now(),
        };
        let thread = std::thread::Builder::new().name(format!("log-{}", sink.as_str())).spawn(move || {
            let died = |reader: &Reader, reason| (reader.events)(SourceEvent::Failed(reason));
            supervise::watched(reader, Reader::run, died);
            Ok(())
        })?;
        Ok(SourceHandle { commands: sender, thread })
    }
}

impl Reader {
    fn run(&mut self) {
        self.assign();
        let mut pause = Duration::ZERO;
        loop {
            match self.command(pause) {
                Ok(SourceCommand::Close(positions)) => return self.leave(&positions),
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            self.tell_end();
            pause = if self.commands.is_empty() { self.read() } else { Duration::ZERO };
        }
    }

    fn command(&self, pause: Duration) -> Result<SourceCommand, RecvTimeoutError> {
        if !pause.is_zero() {
            return self.commands.recv_timeout(pause);
        }
        // A wait for no time at all gives the processor away several times.
        self.commands.try_recv().map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        })
    }

    /// Keeps the lag true, also while nothing is delivered.
    fn tell_end(&mut self) {
        let end = self.log.end.get();
        if end != self.told_end && self.told_at.elapsed() >= TELL_END {
            (self.told_end, self.told_at) = (end, Instant::now());
            (self.events)(SourceEvent::LogEnd(PARTITION, end));
        }
    }

    fn assign(&mut self) {
        self.delivering = None;
        match self.assignment() {
            Ok(assignment) => (self.events)(SourceEvent::Assigned(vec![assignment])),
            Err(error) => {
                (self.events)(SourceEvent::Failed(format!("cannot read {}: {error}", self.log.path.display())))
            }
        }
    }

    fn assignment(&self) -> rusqlite::Result<Assignment> {
        Ok(Assignment {
            partition: PARTITION,
            committed: schema::cursor(&self.records.database, self.sink.as_str())?,
            log_start: schema::log_start(&self.records.database)?,
            log_end: self.log.end.get(),
            identity: self.log.identity.clone(),
            holds_all: true,
        })
    }

    fn handle(&mut self, command: SourceCommand) {
        match command {
            SourceCommand::Begin { epoch, at, .. } => self.delivering = Some((epoch, at)),
            SourceCommand::Hold(_) => self.delivering = None,
            SourceCommand::Pause => self.paused = true,
            SourceCommand::Resume => self.paused = false,
            SourceCommand::Commit(positions) => {
                if let Some((_, position)) = positions.last() {
                    self.log.move_cursor(self.sink.as_str(), *position);
                }
            }
            SourceCommand::Reassign | SourceCommand::ReassignPartition(_) => self.assign(),
            SourceCommand::Close(_) => {}
        }
    }

    /// The consumer has counted what is left before this.
    fn leave(&self, positions: &[(Partition, Offset)]) {
        if let Some((_, position)) = positions.last() {
            self.log.move_cursor(self.sink.as_str(), *position);
        }
        let (done, written) = bounded(1);
        if self.log.writer.send(Write::Flush(done)).is_ok() {
            // An error says that the writer has ended.
            let _ = written.recv();
        }
    }

    /// Delivers a batch when there are records and a permit; returns how long to listen for commands before the next.
    fn read(&mut self) -> Duration {
        let Some((epoch, from)) = self.delivering.filter(|_| !self.paused) else { return IDLE };
        if self.log.end.get() <= from {
            self.log.end.wait_beyond(from, IDLE);
            let new = self.log.end.get().since(from);
            // Commits of a few records each would wake both sinks thousands of times a second.
            if new > 0 && new < self.config.load().batch.max_records as u64 {
                thread::sleep(GATHER);
            }
            return Duration::ZERO;
        }
        if !self.budget.has_room() {
            return NO_ROOM;
        }
        match self.batch(epoch, from) {
            Ok(Some(batch)) => {
                self.delivering = Some((epoch, batch.to));
                self.usual = batch.records.size();
                if std::mem::take(&mut self.failing) {
                    (self.events)(SourceEvent::Available);
                }
                (self.events)(SourceEvent::Batch(batch));
                Duration::ZERO
            }
            // The records at the position were trimmed: the sink decides where to go on.
            Ok(None) => {
                self.assign();
                IDLE
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    (self.events)(SourceEvent::Unavailable(format!("{error:#}")));
                }
                RETRY
            }
        }
    }

    /// `None` when the log does not hold `from` any more.
    fn batch(&mut self, epoch: Epoch, from: Offset) -> anyhow::Result<Option<Batch>> {
        let config = self.config.load();
        let bounds = Bounds { records: config.batch.max_records, bytes: config.batch.max_bytes.as_usize() };
        let read = self.records.read(from, bounds, RecordBuffer::with_capacity(self.usual)).map_err(|error| {
            if !error.is::<Damaged>() {
                return error;
            }
            anyhow::anyhow!(
                "{error}; stop and restore it with the segments in {}, or move both away and raise queue.generation: what the \
                 sinks have not of it is lost then",
                self.records.folder().display()
            )
        });
        let Some((records, to)) = read? else {
            return Ok(None);
        };
        let permit = self.budget.take(records.size());
        Ok(Some(Batch { partition: PARTITION, epoch, from, to, records: Arc::new(records), permit }))
    }
}
