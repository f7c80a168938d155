//! One process that archives the partition, or believes so: mailboxes between its actors, and what decides nothing: the
//! spool's thread, and the uploader's requests.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Context,
    time::{Duration, Instant},
};

use ingestd::internals::{
    archive::{
        partition::{
            BatchVerdict, Effect, Input, Moment, News, Partitions, PutAnswer, Rules, SegmentCommand, Transfer,
        },
        spool::segment::{SealedSegment, SegmentHeader, VERSION},
        upload::opening::{Head, Known, OpenError, Unusable, end_of_chain},
    },
    config::OnGap,
    consume::{Begin, Confirm, Halt, Reassign, assignments::Assignments},
    log::{Assignment, Epoch},
    position::{Offset, Timestamp, TopicIdentity},
};

use super::{
    ARCHIVE, File, PARTITION, Without,
    store::{Questions, Shared},
};
use crate::schedule::Trace;

pub enum ToSpooler {
    Input(Input),
    Batch { epoch: Epoch, from: Offset, to: Offset, records: Vec<Offset> },
}

impl ToSpooler {
    pub fn about(epoch: Epoch, news: News) -> Self {
        Self::Input(Input::About { partition: PARTITION, epoch, news })
    }
}

pub enum ToThread {
    Scan(Epoch),
    Begin { epoch: Epoch, chain_offset: Offset },
    Append { epoch: Epoch, records: Vec<Offset> },
    End,
    Close,
    Remove(SealedSegment),
}

pub enum ToUploader {
    Open(Epoch, Assignment, Known),
    Put(Epoch, SealedSegment),
    WriteHead(Head),
}

pub enum ToConsumer {
    Begin(Begin),
    Confirm(Confirm),
    Reassign(Reassign),
    Halt(Halt),
    /// The sink lost its state.
    SinkStarted,
}

type Opening = Pin<Box<dyn Future<Output = Result<Offset, OpenError>> + Send>>;

enum Request {
    /// Not asked yet.
    ToOpen(Epoch, Assignment, Known),
    Opening(Epoch, Assignment, Known, Opening),
    Put(Epoch, SealedSegment),
    /// None is under way for this assignment.
    Answered(Epoch),
}

/// The spool thread's state of the partition.
struct Spooling {
    epoch: Epoch,
    chain_offset: Offset,
    records: Vec<Offset>,
}

pub struct Life {
    pub generation: u64,
    pub consumer: Assignments,
    /// Where the source fetches next.
    pub source: Option<(Epoch, Offset)>,
    pub looking_up: bool,
    pub to_commit: Option<Offset>,
    pub halted: Option<String>,
    on_gap: OnGap,
    spooler: Partitions,
    at: Instant,
    spooling: Option<Spooling>,
    request: Option<Request>,
    /// Heads on their way.
    pub heads: Vec<Head>,
    pub to_spooler: VecDeque<ToSpooler>,
    pub to_thread: VecDeque<ToThread>,
    pub to_uploader: VecDeque<ToUploader>,
    pub to_consumer: VecDeque<ToConsumer>,
}

impl Life {
    pub fn new(generation: u64) -> Self {
        Self {
            generation,
            consumer: Assignments::default(),
            source: None,
            looking_up: true,
            to_commit: None,
            halted: None,
            on_gap: OnGap::Halt,
            spooler: partitions(),
            at: Instant::now(),
            spooling: None,
            request: None,
            heads: Vec::new(),
            to_spooler: VecDeque::new(),
            to_thread: VecDeque::new(),
            to_uploader: VecDeque::new(),
            to_consumer: VecDeque::new(),
        }
    }

    // ---- failures

    /// Its thread ends with it, after what it was told; a fresh one asks for everything anew.
    pub fn spooler_panics(&mut self) {
        self.spooler = partitions();
        self.spooling = None;
        self.to_spooler.clear();
        self.to_thread.retain(|command| matches!(command, ToThread::Remove(_)));
        self.to_consumer.push_back(ToConsumer::SinkStarted);
    }

    /// A PUT that is cut off may have taken effect, or do so later.
    pub fn uploader_panics(&mut self, disk: &[File]) -> Option<File> {
        let cut_off = self.put_under_way();
        self.request = None;
        self.to_uploader.clear();
        self.to_spooler.push_back(ToSpooler::Input(Input::UploaderStarted));
        let (_, segment) = cut_off?;
        disk.iter().find(|file| file.segment == segment).cloned()
    }

    // ---- consumer

    pub fn consumer_hears(&mut self, message: ToConsumer) {
        match message {
            ToConsumer::Begin(Begin { partition, epoch, at }) => {
                if self.consumer.begin(partition, epoch) {
                    self.source = Some((epoch, at));
                }
            }
            ToConsumer::Confirm(Confirm { partition, epoch, position }) => {
                if self.consumer.confirm(partition, epoch, position) {
                    self.to_commit = Some(position);
                }
            }
            ToConsumer::Reassign(Reassign { partition, epoch }) => {
                if self.consumer.reassign(partition, epoch) {
                    (self.source, self.looking_up) = (None, true);
                }
            }
            ToConsumer::Halt(Halt { partition, epoch, reason, .. }) => {
                if self.consumer.halt(partition, epoch) {
                    (self.source, self.halted) = (None, Some(reason));
                }
            }
            ToConsumer::SinkStarted => {
                // What the group revoked meanwhile is not asked for again.
                if self.consumer.lag(PARTITION).is_some() {
                    (self.source, self.looking_up) = (None, true);
                }
            }
        }
    }

    // ---- spooler

    pub fn spooler_hears(&mut self, message: ToSpooler, skips_cursor: bool, trace: &mut Trace) {
        // Of every second worker, heads are written with each object; of the others, once in a while.
        self.at += Duration::from_secs(if self.generation.is_multiple_of(2) { 10 } else { 1 });
        match message {
            ToSpooler::Input(input) => {
                let begins_anew = matches!(input, Input::UploaderStarted);
                self.on(input, trace);
                if begins_anew {
                    self.to_consumer.push_back(ToConsumer::SinkStarted);
                }
            }
            ToSpooler::Batch { epoch, from, to, records } => {
                let from = match self.spooler.batch(PARTITION, epoch, from, to) {
                    BatchVerdict::From(from) => from,
                    BatchVerdict::Refused(_) if skips_cursor => from,
                    BatchVerdict::Refused(begin) => {
                        trace.saw("refused beyond the cursor");
                        return self.to_consumer.push_back(ToConsumer::Begin(begin));
                    }
                    BatchVerdict::Ignored => return,
                };
                let records = records.into_iter().filter(|offset| *offset >= from).collect();
                self.to_thread.push_back(ToThread::Append { epoch, records });
            }
        }
    }

    fn on(&mut self, input: Input, trace: &mut Trace) {
        for effect in self.spooler.on(input, Moment { at: self.at, on_gap: self.on_gap }) {
            match effect {
                Effect::Segments(command) => self.to_thread.push_back(match command {
                    SegmentCommand::Scan { epoch, .. } => ToThread::Scan(epoch),
                    SegmentCommand::Begin { epoch, chain_offset, .. } => ToThread::Begin { epoch, chain_offset },
                    SegmentCommand::End(_) => ToThread::End,
                    SegmentCommand::Close(_) => ToThread::Close,
                    SegmentCommand::Remove(segment) => ToThread::Remove(segment),
                    SegmentCommand::Orphan { segment, .. } => {
                        trace.saw("orphaned");
                        ToThread::Remove(segment)
                    }
                }),
                Effect::Transfer(transfer) => self.to_uploader.push_back(match transfer {
                    Transfer::OpenChain { epoch, assignment, known } => ToUploader::Open(epoch, assignment, known),
                    Transfer::Put { epoch, segment } => ToUploader::Put(epoch, segment),
                    Transfer::WriteHead { head, .. } => ToUploader::WriteHead(head),
                    // The model's operator speaks by the configuration.
                    Transfer::AskAboutGap { .. } => continue,
                }),
                Effect::Begin(begin) => self.to_consumer.push_back(ToConsumer::Begin(begin)),
                Effect::Confirm(confirm) => self.to_consumer.push_back(ToConsumer::Confirm(confirm)),
                Effect::Reassign(reassign) | Effect::ReassignSoon(reassign) => {
                    self.to_consumer.push_back(ToConsumer::Reassign(reassign));
                }
                Effect::Halt(halt) => self.to_consumer.push_back(ToConsumer::Halt(halt)),
                Effect::Archived { .. } => {}
                Effect::Followed { .. } => trace.saw("followed"),
                Effect::Lost { .. } => trace.saw("gap"),
                Effect::Skipped { .. } => {
                    trace.saw("gap skipped");
                    self.halted = None;
                }
            }
        }
    }

    pub fn tick(&mut self, trace: &mut Trace) {
        self.at += Duration::from_secs(1);
        self.on(Input::Tick, trace);
    }

    /// From here on the operator allows what retention tore.
    pub fn skip_gaps(&mut self, trace: &mut Trace) {
        self.on_gap = OnGap::Skip;
        self.tick(trace);
    }

    // ---- the spool's thread

    pub fn thread_hears(&mut self, message: ToThread, disk: &mut Vec<File>) {
        match message {
            ToThread::Scan(epoch) => {
                self.seal(disk);
                self.spooling = None;
                disk.sort_by_key(|file| file.segment.chain_offset());
                let segments = disk.iter().map(|file| file.segment.clone()).collect();
                self.to_spooler.push_back(ToSpooler::about(epoch, News::Scanned(segments)));
            }
            ToThread::Begin { epoch, chain_offset } => {
                self.spooling = Some(Spooling { epoch, chain_offset, records: Vec::new() })
            }
            ToThread::Append { epoch, mut records } => {
                // Batches of an earlier assignment come before its end.
                if let Some(spooling) = self.spooling.as_mut().filter(|spooling| spooling.epoch == epoch) {
                    spooling.records.append(&mut records);
                }
            }
            ToThread::End => self.spooling = None,
            ToThread::Close => {
                self.seal(disk);
                self.spooling = None;
            }
            // By its name, which is the position.
            ToThread::Remove(segment) => disk.retain(|file| file.segment.chain_offset() != segment.chain_offset()),
        }
    }

    /// Seals what is open, if anything is.
    pub fn seal(&mut self, disk: &mut Vec<File>) -> Option<File> {
        let spooling = self.spooling.as_mut().filter(|spooling| !spooling.records.is_empty())?;
        let records = std::mem::take(&mut spooling.records);
        let (chain_offset, end) = (spooling.chain_offset, records.last()?.next());
        spooling.chain_offset = end;
        let file = File { segment: segment(chain_offset, end, &records), records };
        // A file of the same name is replaced.
        disk.retain(|other| other.segment.chain_offset() != chain_offset);
        disk.push(file.clone());
        self.to_spooler.push_back(ToSpooler::about(spooling.epoch, News::Sealed(file.segment.clone())));
        Some(file)
    }

    // ---- uploader

    pub fn put_under_way(&self) -> Option<(Epoch, SealedSegment)> {
        match &self.request {
            Some(Request::Put(epoch, segment)) => Some((*epoch, segment.clone())),
            _ => None,
        }
    }

    /// Whether the request under way is about the chain's end; if so it gets on by one question. `begin`: with the
    /// rule taken out, where the chain begins.
    pub fn poll_opening(&mut self, shared: &Arc<Mutex<Shared>>, without: Without, begin: Option<Offset>) -> bool {
        match self.request.take() {
            Some(Request::ToOpen(epoch, assignment, known)) => {
                let questions = Questions { shared: shared.clone(), without };
                let asked = assignment.clone();
                let opening = Box::pin(async move { end_of_chain(&questions, &asked, known).await });
                self.request = Some(Request::Opening(epoch, assignment, known, opening));
                true
            }
            Some(Request::Opening(epoch, assignment, known, mut opening)) => {
                self.request = Some(match opening.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
                    std::task::Poll::Pending => Request::Opening(epoch, assignment, known, opening),
                    // Passing: asked again.
                    std::task::Poll::Ready(Err(OpenError::Store(_))) => Request::ToOpen(epoch, assignment, known),
                    std::task::Poll::Ready(Err(OpenError::Unusable(unusable))) => self.opened(epoch, Err(unusable)),
                    std::task::Poll::Ready(Ok(end)) => self.opened(epoch, Ok(begin.unwrap_or(end))),
                });
                true
            }
            other => {
                self.request = other;
                false
            }
        }
    }

    fn opened(&mut self, epoch: Epoch, outcome: Result<Offset, Unusable>) -> Request {
        self.to_spooler.push_back(ToSpooler::about(epoch, News::Opened(outcome)));
        Request::Answered(epoch)
    }

    /// The PUT under way is answered.
    pub fn answered(&mut self, epoch: Epoch, answer: PutAnswer) {
        self.request = Some(Request::Answered(epoch));
        self.to_spooler.push_back(ToSpooler::about(epoch, News::Put { key: "key".to_owned(), answer }));
    }

    /// Returns the file of a PUT that was cut off: it may still land.
    pub fn uploader_hears(&mut self, message: ToUploader, disk: &[File]) -> Option<File> {
        match message {
            ToUploader::Open(epoch, assignment, known) => {
                let cut_off = self.put_under_way();
                self.request = Some(Request::ToOpen(epoch, assignment, known));
                let (_, segment) = cut_off?;
                return disk.iter().find(|file| file.segment == segment).cloned();
            }
            ToUploader::Put(epoch, segment) => {
                // What was told to one that has panicked is told to the next one anew.
                if matches!(self.request, Some(Request::Answered(of)) if of == epoch) {
                    self.request = Some(Request::Put(epoch, segment));
                }
            }
            ToUploader::WriteHead(head) => self.heads.push(head),
        }
        None
    }
}

fn partitions() -> Partitions {
    Partitions::new(Rules { topic_folder: "events".to_owned(), archive: ARCHIVE.to_owned(), sole_member_of: None })
}

fn segment(chain_offset: Offset, end: Offset, records: &[Offset]) -> SealedSegment {
    let header = SegmentHeader {
        version: VERSION,
        topic: "events".to_owned(),
        generation: 0,
        identity: TopicIdentity("id".into()),
        archive: ARCHIVE.to_owned(),
        partition: PARTITION,
        chain_offset,
        end,
        first_offset: records[0],
        first_received: Timestamp(0),
        records: records.len() as u64,
        bytes: 1,
        crc32c: 0,
    };
    SealedSegment { header, path: format!("{chain_offset}.zst").into() }
}
