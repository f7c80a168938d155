//! One process that archives the partition, or believes so: mailboxes between its actors, and what is not decided by
//! the code under test: the spool's thread, and the uploader's requests.

use std::{
    collections::VecDeque,
    pin::Pin,
    sync::{Arc, Mutex},
    task::Context,
};

use ingestd::internals::{
    archive::{
        spool::{
            protocol::{Effect, Protocol, Rules, Taken},
            segment::{SealedSegment, SegmentHeader, VERSION},
        },
        upload::{
            chain::{Chain, Put, Step},
            opening::{Head, Known, Unusable, end_of_chain},
        },
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
    Assign(Epoch, Assignment),
    Unassign(Epoch),
    Batch { epoch: Epoch, from: Offset, to: Offset, records: Vec<Offset> },
    Scanned(Epoch, Vec<SealedSegment>),
    Sealed(Epoch, SealedSegment),
    ChainOpened(Epoch, Offset),
    Archived(Epoch, SealedSegment),
    Followed(Epoch, Offset),
    Damaged(Epoch, SealedSegment),
    ChainHalted(Epoch, String),
}

pub enum ToThread {
    Scan(Epoch),
    Begin { epoch: Epoch, x: Offset },
    Append { epoch: Epoch, records: Vec<Offset> },
    End,
    Close,
    Remove(SealedSegment),
}

#[derive(Debug)]
pub enum Answer {
    Put(Put),
    Damaged,
}

pub enum ToUploader {
    Open(Epoch, Assignment),
    Opened(Epoch, Result<Offset, Unusable>),
    Upload(Epoch, SealedSegment),
    Answered(Epoch, Answer),
}

pub enum ToConsumer {
    Begin(Begin),
    Confirm(Confirm),
    Reassign(Reassign),
    Halt(Halt),
    /// The sink lost its state.
    SinkStarted,
}

type Opening = Pin<Box<dyn Future<Output = object_store::Result<Result<Offset, Unusable>>> + Send>>;

enum Request {
    /// Not asked yet.
    ToOpen(Epoch, Assignment),
    Opening(Epoch, Assignment, Opening),
    Put(Epoch, SealedSegment),
}

/// The spool thread's state of the partition.
struct Spooling {
    epoch: Epoch,
    x: Offset,
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
    spooler: Protocol,
    spooling: Option<Spooling>,
    chain: Option<Chain>,
    request: Option<Request>,
    known: Known,
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
            spooler: protocol(),
            spooling: None,
            chain: None,
            request: None,
            known: Known::default(),
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
        self.spooler = protocol();
        self.spooling = None;
        self.to_spooler.clear();
        self.to_thread.retain(|command| matches!(command, ToThread::Remove(_)));
        self.to_consumer.push_back(ToConsumer::SinkStarted);
    }

    /// A PUT that is cut off may have taken effect, or do so later.
    pub fn uploader_panics(&mut self, disk: &[File]) -> Option<File> {
        let cut_off = self.put_under_way();
        (self.chain, self.request, self.known) = (None, None, Known::default());
        self.to_uploader.clear();
        self.spooler.uploads_lost();
        self.to_consumer.push_back(ToConsumer::SinkStarted);
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
        let effects = match message {
            ToSpooler::Assign(epoch, assignment) => self.spooler.assigned(epoch, assignment),
            ToSpooler::Unassign(epoch) => self.spooler.unassigned(PARTITION, epoch),
            ToSpooler::Batch { epoch, from, to, records } => {
                let from = match self.spooler.batch(PARTITION, epoch, from, to) {
                    Taken::From(from) => from,
                    Taken::Refused(_) if skips_cursor => from,
                    Taken::Refused(begin) => {
                        trace.saw("refused beyond the cursor");
                        return self.to_consumer.push_back(ToConsumer::Begin(begin));
                    }
                    Taken::Ignored => return,
                };
                let records = records.into_iter().filter(|offset| *offset >= from).collect();
                return self.to_thread.push_back(ToThread::Append { epoch, records });
            }
            ToSpooler::Scanned(epoch, segments) => self.spooler.scanned(PARTITION, epoch, segments, self.on_gap),
            ToSpooler::Sealed(epoch, segment) => self.spooler.sealed(epoch, segment),
            ToSpooler::ChainOpened(epoch, end) => self.spooler.chain_opened(PARTITION, epoch, end, self.on_gap),
            ToSpooler::Archived(epoch, segment) => self.spooler.archived(epoch, segment),
            ToSpooler::Followed(epoch, end) => self.spooler.followed(PARTITION, epoch, end),
            ToSpooler::Damaged(epoch, segment) => {
                self.to_consumer.push_back(ToConsumer::Reassign(Reassign { partition: PARTITION, epoch }));
                self.spooler.damaged(segment, "gone".to_owned())
            }
            ToSpooler::ChainHalted(epoch, reason) => self.spooler.chain_halted(PARTITION, epoch, reason, String::new()),
        };
        self.perform(effects, trace);
    }

    fn perform(&mut self, effects: Vec<Effect>, trace: &mut Trace) {
        for effect in effects {
            match effect {
                Effect::Scan { epoch, .. } => self.to_thread.push_back(ToThread::Scan(epoch)),
                Effect::BeginSegments { epoch, x, .. } => self.to_thread.push_back(ToThread::Begin { epoch, x }),
                Effect::EndSegments(_) => self.to_thread.push_back(ToThread::End),
                Effect::CloseSegments(_) => self.to_thread.push_back(ToThread::Close),
                Effect::Remove(segment) => self.to_thread.push_back(ToThread::Remove(segment)),
                Effect::Orphan { segment, .. } => {
                    trace.saw("orphaned");
                    self.to_thread.push_back(ToThread::Remove(segment));
                }
                Effect::OpenChain { epoch, assignment } => {
                    self.to_uploader.push_back(ToUploader::Open(epoch, assignment));
                }
                Effect::Upload { epoch, segment } => self.to_uploader.push_back(ToUploader::Upload(epoch, segment)),
                Effect::Begin(begin) => self.to_consumer.push_back(ToConsumer::Begin(begin)),
                Effect::Confirm(confirm) => self.to_consumer.push_back(ToConsumer::Confirm(confirm)),
                Effect::Reassign(reassign) => self.to_consumer.push_back(ToConsumer::Reassign(reassign)),
                Effect::Halt(halt) => self.to_consumer.push_back(ToConsumer::Halt(halt)),
                Effect::Lost { .. } => trace.saw("gap"),
                Effect::Skipped { .. } => {
                    trace.saw("gap skipped");
                    self.halted = None;
                }
                // The model's operator speaks by the configuration.
                Effect::AskAboutGap { .. } => {}
            }
        }
    }

    /// From here on the operator allows what retention tore.
    pub fn skip_gaps(&mut self, trace: &mut Trace) {
        self.on_gap = OnGap::Skip;
        let effects = self.spooler.skip_gaps();
        self.perform(effects, trace);
    }

    // ---- the spool's thread

    pub fn thread_hears(&mut self, message: ToThread, disk: &mut Vec<File>) {
        match message {
            ToThread::Scan(epoch) => {
                self.seal(disk);
                self.spooling = None;
                disk.sort_by_key(|file| file.segment.x());
                let segments = disk.iter().map(|file| file.segment.clone()).collect();
                self.to_spooler.push_back(ToSpooler::Scanned(epoch, segments));
            }
            ToThread::Begin { epoch, x } => self.spooling = Some(Spooling { epoch, x, records: Vec::new() }),
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
            ToThread::Remove(segment) => disk.retain(|file| file.segment.x() != segment.x()),
        }
    }

    /// Seals what is open, if anything is.
    pub fn seal(&mut self, disk: &mut Vec<File>) -> Option<File> {
        let spooling = self.spooling.as_mut().filter(|spooling| !spooling.records.is_empty())?;
        let records = std::mem::take(&mut spooling.records);
        let (x, end) = (spooling.x, records.last()?.next());
        spooling.x = end;
        let file = File { segment: segment(x, end, &records), records };
        // A file of the same name is replaced.
        disk.retain(|other| other.segment.x() != x);
        disk.push(file.clone());
        self.to_spooler.push_back(ToSpooler::Sealed(spooling.epoch, file.segment.clone()));
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
            Some(Request::ToOpen(epoch, assignment)) => {
                let (questions, known) = (Questions { shared: shared.clone(), without }, self.known);
                let asked = assignment.clone();
                let opening = Box::pin(async move { end_of_chain(&questions, &asked, known).await });
                self.request = Some(Request::Opening(epoch, assignment, opening));
                true
            }
            Some(Request::Opening(epoch, assignment, mut opening)) => {
                match opening.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
                    std::task::Poll::Pending => self.request = Some(Request::Opening(epoch, assignment, opening)),
                    std::task::Poll::Ready(Ok(outcome)) => {
                        let outcome = outcome.map(|end| begin.unwrap_or(end));
                        self.to_uploader.push_back(ToUploader::Opened(epoch, outcome));
                    }
                    // Passing: asked again.
                    std::task::Poll::Ready(Err(_)) => self.request = Some(Request::ToOpen(epoch, assignment)),
                }
                true
            }
            other => {
                self.request = other;
                false
            }
        }
    }

    /// Returns the file of a PUT that was cut off: it may still land.
    pub fn uploader_hears(&mut self, message: ToUploader, disk: &[File], trace: &mut Trace) -> Option<File> {
        match message {
            ToUploader::Open(epoch, assignment) => {
                let cut_off = self.put_under_way();
                self.chain = Some(Chain::new(epoch));
                self.request = Some(Request::ToOpen(epoch, assignment));
                let (_, segment) = cut_off?;
                return disk.iter().find(|file| file.segment == segment).cloned();
            }
            ToUploader::Opened(epoch, outcome) => {
                let chain = self.chain.as_mut().filter(|chain| chain.epoch == epoch)?;
                self.to_spooler.push_back(match outcome {
                    Ok(end) => {
                        chain.opened(end);
                        ToSpooler::ChainOpened(epoch, end)
                    }
                    Err(Unusable { reason, .. }) => ToSpooler::ChainHalted(epoch, reason),
                });
            }
            ToUploader::Upload(epoch, segment) => {
                let chain = self.chain.as_mut().filter(|chain| chain.epoch == epoch)?;
                if chain.enqueue(segment) {
                    self.proceed();
                }
            }
            ToUploader::Answered(epoch, answer) => {
                let chain = self.chain.as_mut().filter(|chain| chain.epoch == epoch)?;
                self.request = None;
                match answer {
                    Answer::Damaged => {
                        if let Some(segment) = chain.damaged() {
                            self.to_spooler.push_back(ToSpooler::Damaged(epoch, segment));
                        }
                    }
                    Answer::Put(put) => match chain.answered(put) {
                        Some(Step::Archived(segment)) => {
                            self.archived(segment.end());
                            self.to_spooler.push_back(ToSpooler::Archived(epoch, segment));
                        }
                        Some(Step::Follow { end }) => {
                            trace.saw("followed");
                            self.known.met(end);
                            self.to_spooler.push_back(ToSpooler::Followed(epoch, end));
                        }
                        Some(Step::Halt { reason }) => {
                            self.to_spooler.push_back(ToSpooler::ChainHalted(epoch, reason));
                        }
                        None => {}
                    },
                }
                self.proceed();
            }
        }
        None
    }

    fn archived(&mut self, end: Offset) {
        self.known.archived(end);
        self.heads.push(Head { version: Head::VERSION, end, key: None, identity: TopicIdentity("id".into()) });
    }

    fn proceed(&mut self) {
        if let Some(chain) = &mut self.chain
            && let Some(segment) = chain.due()
        {
            self.request = Some(Request::Put(chain.epoch, segment));
        }
    }
}

fn protocol() -> Protocol {
    Protocol::new(Rules { topic_folder: "events".to_owned(), archive: ARCHIVE.to_owned(), sole_member_of: None })
}

fn segment(x: Offset, end: Offset, records: &[Offset]) -> SealedSegment {
    let header = SegmentHeader {
        version: VERSION,
        topic: "events".to_owned(),
        generation: 0,
        identity: TopicIdentity("id".into()),
        archive: ARCHIVE.to_owned(),
        partition: PARTITION,
        x,
        end,
        first_offset: records[0],
        first_received: Timestamp(0),
        records: records.len() as u64,
        bytes: 1,
        crc32c: 0,
    };
    SealedSegment { header, path: format!("{x}.zst").into() }
}
