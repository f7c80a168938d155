//! The spool's thread: compresses batches into open segments, seals them, removes what is archived.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use actix::Message;
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, unbounded};

use super::{
    open::{Finished, OpenSegment},
    segment::{self, Scan, SealedSegment, SegmentHeader, UnreadableHeader},
};
use crate::{
    archive::{
        line::LineEncoder,
        partition::{News, SegmentCommand},
    },
    config::LiveConfig,
    log::{Batch, Epoch},
    position::{Offset, Partition, TopicIdentity},
    supervise,
};

/// Lines are compressed in pieces of this size; sealing by size is decided between them.
const PIECE: usize = 256 * 1024;
/// How late a segment may be sealed by age.
const AGE_CHECK: Duration = Duration::from_millis(50);

/// To the spool's thread. The channel has no bound of its own: batches carry permits of their source's byte budget, and
/// the rest is a handful a segment.
pub(super) enum SpoolCommand {
    /// As the machine has decided.
    Segments(SegmentCommand),
    /// Say in the log which partitions, beside these, have sealed segments on disk.
    NameOthers(Vec<Partition>),
    /// Spool the batch's records from `from` on.
    Append { batch: Batch, from: Offset },
    /// Whether segments are sealed when they reach `spool.max_age`.
    SealByAge(bool),
    /// Seal every open segment.
    SealAll,
    /// Answered when everything before it is done.
    Barrier(tokio::sync::oneshot::Sender<()>),
    /// Ends the thread.
    Stop,
}

/// From the spool's thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub(super) enum SpoolEvent {
    /// What was done. After a failure the open segment is lost (the log has its records), and the partition has to begin again.
    Done { partition: Partition, epoch: Epoch, outcome: io::Result<News> },
    /// The thread panicked.
    Died(String),
}

pub(super) struct SpoolWriter {
    /// `<data.dir>/spool/<topic>`.
    folder: PathBuf,
    /// `<data.dir>/orphaned/<topic>`.
    orphaned: PathBuf,
    config: LiveConfig,
    lines: LineEncoder,
    piece: Vec<u8>,
    partitions: BTreeMap<Partition, Spooling>,
    seals_by_age: bool,
    events: Box<dyn Fn(SpoolEvent) + Send>,
}

/// A partition that is being spooled.
struct Spooling {
    epoch: Epoch,
    identity: TopicIdentity,
    chain_offset: Offset,
    open: Option<OpenSegment>,
}

pub(super) struct SpoolThread {
    pub(super) commands: Sender<SpoolCommand>,
    thread: Option<JoinHandle<()>>,
}

impl Drop for SpoolThread {
    fn drop(&mut self) {
        let _ = self.commands.send(SpoolCommand::Stop);
        // What it still does takes milliseconds, and the next incarnation must find its files at rest.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

impl SpoolWriter {
    pub(super) fn spawn(
        data_dir: &Path,
        config: LiveConfig,
        events: Box<dyn Fn(SpoolEvent) + Send>,
    ) -> io::Result<SpoolThread> {
        let (commands, receiver) = unbounded();
        let now = config.load_full();
        let topic = now.queue.name().to_string();
        let writer = Self {
            folder: data_dir.join("spool").join(&topic),
            orphaned: data_dir.join("orphaned").join(&topic),
            config,
            lines: LineEncoder::new(now.event.key_field().to_owned()),
            piece: Vec::with_capacity(PIECE + PIECE / 4),
            partitions: BTreeMap::new(),
            seals_by_age: true,
            events,
        };
        let thread = std::thread::Builder::new().name("spool".to_owned()).spawn(move || {
            let died = |writer: &Self, reason| (writer.events)(SpoolEvent::Died(reason));
            supervise::watched(writer, |writer| writer.run(&receiver), died);
        })?;
        Ok(SpoolThread { commands, thread: Some(thread) })
    }

    fn run(&mut self, commands: &Receiver<SpoolCommand>) {
        let mut ages_checked = Instant::now();
        loop {
            let command = match self.next_age_deadline() {
                Some(deadline) => commands.recv_deadline(deadline),
                None => commands.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match command {
                Ok(SpoolCommand::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(command) => self.handle(command),
                Err(RecvTimeoutError::Timeout) => {}
            }
            // Under load no wait times out, so ages are looked at here too.
            if ages_checked.elapsed() >= AGE_CHECK {
                self.seal_old();
                ages_checked = Instant::now();
            }
        }
    }

    fn handle(&mut self, command: SpoolCommand) {
        match command {
            SpoolCommand::Segments(command) => self.handle_segments(command),
            SpoolCommand::NameOthers(assigned) => self.name_others(&assigned),
            SpoolCommand::Append { batch, from } => {
                let partition = batch.partition;
                let outcome = self.append(&batch, from);
                self.note(partition, outcome);
            }
            SpoolCommand::SealByAge(on) => self.seals_by_age = on,
            SpoolCommand::SealAll => {
                let partitions: Vec<Partition> = self.partitions.keys().copied().collect();
                partitions.into_iter().for_each(|partition| self.seal(partition));
            }
            SpoolCommand::Barrier(done) => {
                // An error says that nobody waits any more.
                let _ = done.send(());
            }
            SpoolCommand::Stop => {}
        }
    }

    fn handle_segments(&mut self, command: SegmentCommand) {
        match command {
            SegmentCommand::Scan { partition, epoch } => {
                // Not dropped: the log may not have its records any more.
                self.seal(partition);
                self.end(partition);
                self.done(partition, epoch, self.scan(partition).map(News::Scanned));
            }
            SegmentCommand::Begin { partition, epoch, chain_offset, identity } => {
                self.end(partition);
                self.partitions.insert(partition, Spooling { epoch, identity, chain_offset, open: None });
            }
            SegmentCommand::End(partition) => self.end(partition),
            SegmentCommand::Close(partition) => {
                self.seal(partition);
                self.end(partition);
            }
            SegmentCommand::Remove(segment) => {
                if let Err(error) = segment.remove() {
                    tracing::warn!(path = %segment.path.display(), %error, "archived segment not removed");
                }
            }
            SegmentCommand::Orphan { segment, why } => {
                let folder = self.orphaned.join(segment.header.partition.to_string());
                match segment::set_aside(&segment.path, &folder) {
                    Ok(path) => tracing::error!(path = %path.display(), why, "segment set aside"),
                    Err(error) => {
                        tracing::error!(path = %segment.path.display(), why, %error, "segment could not be set aside");
                    }
                }
            }
        }
    }

    fn partition_folder(&self, partition: Partition) -> PathBuf {
        self.folder.join(partition.to_string())
    }

    /// The partition's sealed segments; what cannot be read is set aside.
    fn scan(&self, partition: Partition) -> io::Result<Vec<SealedSegment>> {
        let Scan { segments, unreadable } = segment::scan(&self.partition_folder(partition))?;
        for UnreadableHeader { path, why, .. } in unreadable {
            let path = segment::set_aside(&path, &self.orphaned.join(partition.to_string()))?;
            tracing::error!(path = %path.display(), why, "segment set aside");
        }
        Ok(segments)
    }

    /// Segments of partitions that went elsewhere wait for their return: only an assignment tells where they belong.
    /// Those of other topics and generations wait for the operator.
    fn name_others(&self, assigned: &[Partition]) {
        for (partition, folder) in numbered(&self.folder) {
            if !assigned.contains(&partition) && !self.partitions.contains_key(&partition) {
                name(&folder, "sealed segments of a partition that is not assigned here wait on disk for its return");
            }
        }
        let topics = self.folder.parent().map(std::fs::read_dir).into_iter().flatten().flatten().flatten();
        for topic in topics.filter(|topic| topic.path() != self.folder) {
            for (_, folder) in numbered(&topic.path()) {
                name(
                    &folder,
                    "sealed segments of another topic or generation wait on disk: stop this process and run \
                     `ingestd archive drain` with that topic and generation",
                );
            }
        }
    }

    /// Drops the open segment: its file is removed here or by the next scan.
    fn end(&mut self, partition: Partition) {
        if let Some(Spooling { chain_offset, open: Some(_), .. }) = self.partitions.remove(&partition) {
            let _ = std::fs::remove_file(segment::open_path(&self.partition_folder(partition), chain_offset));
        }
    }

    fn append(&mut self, batch: &Batch, from: Offset) -> io::Result<()> {
        let partition = batch.partition;
        let folder = self.partition_folder(partition);
        let config = self.config.load_full();
        self.piece.clear();
        for record in batch.records.iter().filter(|record| record.offset >= from) {
            let Some(spooling) = self.partitions.get_mut(&partition) else { return Ok(()) };
            let open = match &mut spooling.open {
                Some(open) => open,
                none => {
                    none.insert(OpenSegment::create(&folder, spooling.chain_offset, record.offset, record.received)?)
                }
            };
            self.lines.encode(&record, &mut self.piece);
            open.last = record.offset;
            open.records += 1;
            if self.piece.len() >= PIECE || open.records >= config.spool.max_records {
                open.write(&self.piece)?;
                self.piece.clear();
                if open.records >= config.spool.max_records || open.bytes() >= config.spool.max_bytes.0 {
                    self.seal(partition);
                }
            }
        }
        if let Some(open) = self.partitions.get_mut(&partition).and_then(|spooling| spooling.open.as_mut()) {
            open.write(&self.piece)?;
            if open.bytes() >= config.spool.max_bytes.0 {
                self.seal(partition);
            }
        }
        Ok(())
    }

    fn seal(&mut self, partition: Partition) {
        let outcome = self.try_seal(partition);
        self.note(partition, outcome);
    }

    fn try_seal(&mut self, partition: Partition) -> io::Result<()> {
        let (folder, config) = (self.partition_folder(partition), self.config.load_full());
        let Some(spooling) = self.partitions.get_mut(&partition) else { return Ok(()) };
        let Some(open) = spooling.open.take() else { return Ok(()) };
        let end = open.last.next();
        let (first_offset, first_received, records) = (open.first_offset, open.first_received, open.records);
        let Finished { file, bytes, crc32c } = open.finish()?;
        let header = SegmentHeader {
            version: segment::VERSION,
            topic: config.queue.topic.clone(),
            generation: config.queue.generation,
            identity: spooling.identity.clone(),
            archive: config.archive.url.clone(),
            partition,
            chain_offset: spooling.chain_offset,
            end,
            first_offset,
            first_received,
            records,
            bytes,
            crc32c,
        };
        let segment = segment::seal(&folder, header, &file)?;
        spooling.chain_offset = end;
        let epoch = spooling.epoch;
        self.done(partition, epoch, Ok(News::Sealed(segment)));
        Ok(())
    }

    /// After a failure nothing of the open segment can be trusted.
    fn note(&mut self, partition: Partition, outcome: io::Result<()>) {
        let Err(error) = outcome else { return };
        if let Some(spooling) = self.partitions.remove(&partition) {
            self.done(partition, spooling.epoch, Err(error));
        }
    }

    fn done(&self, partition: Partition, epoch: Epoch, outcome: io::Result<News>) {
        (self.events)(SpoolEvent::Done { partition, epoch, outcome });
    }

    /// When each open segment was begun.
    fn ages(&self) -> impl Iterator<Item = (Partition, Instant)> {
        let spooling = self.partitions.iter().filter(|_| self.seals_by_age);
        spooling.filter_map(|(partition, spooling)| Some((*partition, spooling.open.as_ref()?.opened)))
    }

    fn next_age_deadline(&self) -> Option<Instant> {
        let opened = self.ages().map(|(_, opened)| opened).min()?;
        // At least once a second, so that a reload that shortens the age is noticed.
        let now = Instant::now();
        Some((opened + self.config.load().spool.max_age).clamp(now + AGE_CHECK, now + Duration::from_secs(1)))
    }

    fn seal_old(&mut self) {
        let max_age = self.config.load().spool.max_age;
        let old: Vec<_> = self.ages().filter(|(_, opened)| opened.elapsed() >= max_age).collect();
        old.into_iter().for_each(|(partition, _)| self.seal(partition));
    }
}

/// The partitions' folders in a topic's.
fn numbered(topic: &Path) -> impl Iterator<Item = (Partition, PathBuf)> {
    let folders = std::fs::read_dir(topic).into_iter().flatten().flatten();
    folders.filter_map(|folder| Some((Partition(folder.file_name().to_str()?.parse().ok()?), folder.path())))
}

/// Says in the log what sealed segments a partition's folder holds, if any.
fn name(folder: &Path, what: &str) {
    let Scan { segments, unreadable } = segment::sealed_in(folder).unwrap_or_default();
    let bytes: u64 = segments.iter().map(|segment| segment.header.bytes).sum();
    if !segments.is_empty() || !unreadable.is_empty() {
        let unreadable = unreadable.len();
        tracing::warn!(folder = %folder.display(), segments = segments.len(), bytes, unreadable, "{what}");
    }
}
