//! The archive chain of one partition, without any I/O: which segment may go next, and what follows from the answer.
//!
//! Objects form a chain: each covers `[x, end)`, and the next one's `x` is that end. A segment is put only when its `x`
//! is the end that the chain is known to reach, by a create-only PUT; so two writers can never both extend the chain at
//! one position, and neither overwrites the other.

use std::collections::VecDeque;

use crate::{archive::spool::segment::SealedSegment, log::Epoch, position::Offset};

/// What a create-only PUT of a segment found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Put {
    Created,
    /// An object stands there whose records agree with ours where both have them.
    Exists {
        end: Offset,
    },
    /// An object stands there whose records differ from ours, or that cannot be read.
    Conflict {
        reason: String,
    },
}

/// What to do after a PUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The segment's records are archived; the chain reaches its end.
    Archived(SealedSegment),
    /// Another writer's object (or our own, whose reply was lost) stands there: go on at its end.
    Follow {
        end: Offset,
    },
    Halt {
        reason: String,
    },
}

/// The chain as one uploader knows it.
#[derive(Debug)]
pub struct Chain {
    pub epoch: Epoch,
    /// `None` until the head was read.
    end: Option<Offset>,
    /// Segments that chain from `end`, in order; the first one may be on its way.
    queue: VecDeque<SealedSegment>,
    in_flight: bool,
    halted: bool,
}

impl Chain {
    pub fn new(epoch: Epoch) -> Self {
        Self { epoch, end: None, queue: VecDeque::new(), in_flight: false, halted: false }
    }

    /// The head was read: the chain reaches `end`.
    pub fn opened(&mut self, end: Offset) {
        self.end = Some(end);
    }

    pub fn end(&self) -> Option<Offset> {
        self.end
    }

    /// Takes a segment that continues the chain; any other one is not for this chain (a follow came in between), and
    /// the spooler will send what is.
    pub fn enqueue(&mut self, segment: SealedSegment) -> bool {
        let tail = self.queue.back().map_or(self.end, |last| Some(last.end()));
        let chains = !self.halted && tail == Some(segment.x());
        if chains {
            self.queue.push_back(segment);
        }
        chains
    }

    /// The segment to put now, if one is waiting and none is on its way.
    pub fn due(&mut self) -> Option<SealedSegment> {
        if self.in_flight || self.halted {
            return None;
        }
        let first = self.queue.front()?.clone();
        self.in_flight = true;
        Some(first)
    }

    /// The answer to the PUT of the segment that [`Self::due`] gave.
    pub fn answered(&mut self, put: Put) -> Option<Step> {
        if !std::mem::take(&mut self.in_flight) {
            return None;
        }
        let segment = self.queue.pop_front()?;
        Some(match put {
            Put::Created => {
                self.end = Some(segment.end());
                Step::Archived(segment)
            }
            // Our own object: the reply to an earlier attempt was lost.
            Put::Exists { end } if end == segment.end() => {
                self.end = Some(end);
                Step::Archived(segment)
            }
            Put::Exists { end } => {
                self.end = Some(end);
                self.queue.clear();
                Step::Follow { end }
            }
            Put::Conflict { reason } => {
                self.halted = true;
                self.queue.clear();
                Step::Halt { reason }
            }
        })
    }

    /// The file of the segment on its way cannot be read: nothing behind it can go either.
    pub fn damaged(&mut self) -> Option<SealedSegment> {
        self.in_flight = false;
        let segment = self.queue.pop_front();
        self.queue.clear();
        segment
    }

    /// Nothing goes any more.
    pub fn halt(&mut self) {
        self.halted = true;
        self.queue.clear();
    }

    pub fn is_idle(&self) -> bool {
        self.queue.is_empty()
    }

    /// Segments that wait or are on their way.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::spool::segment::sealed_for_tests as segment;

    fn chain_at(end: u64) -> Chain {
        let mut chain = Chain::new(Epoch::fresh());
        chain.opened(Offset(end));
        chain
    }

    #[test]
    fn nothing_goes_before_the_head_is_known() {
        let mut chain = Chain::new(Epoch::fresh());
        assert!(!chain.enqueue(segment(0, 10)));
        assert_eq!(chain.due(), None);
    }

    #[test]
    fn segments_go_strictly_in_order_one_at_a_time() {
        let mut chain = chain_at(0);
        assert!(chain.enqueue(segment(0, 10)));
        assert!(!chain.enqueue(segment(15, 20)));
        assert!(chain.enqueue(segment(10, 20)));
        assert_eq!(chain.due(), Some(segment(0, 10)));
        assert_eq!(chain.due(), None);
        assert_eq!(chain.answered(Put::Created), Some(Step::Archived(segment(0, 10))));
        assert_eq!(chain.due(), Some(segment(10, 20)));
    }

    #[test]
    fn a_lost_reply_is_recognised_by_the_objects_end() {
        let mut chain = chain_at(0);
        chain.enqueue(segment(0, 10));
        chain.due();
        assert_eq!(chain.answered(Put::Exists { end: Offset(10) }), Some(Step::Archived(segment(0, 10))));
        assert_eq!(chain.end(), Some(Offset(10)));
    }

    #[test]
    fn a_second_writer_is_followed_and_what_was_queued_does_not_go() {
        let mut chain = chain_at(0);
        chain.enqueue(segment(0, 10));
        chain.enqueue(segment(10, 20));
        chain.due();
        assert_eq!(chain.answered(Put::Exists { end: Offset(7) }), Some(Step::Follow { end: Offset(7) }));
        assert_eq!(chain.due(), None);
        assert!(!chain.enqueue(segment(20, 30)));
        assert!(chain.enqueue(segment(7, 30)));
    }

    #[test]
    fn a_conflict_halts_the_chain() {
        let mut chain = chain_at(0);
        chain.enqueue(segment(0, 10));
        chain.due();
        assert!(matches!(chain.answered(Put::Conflict { reason: "differ".into() }), Some(Step::Halt { .. })));
        assert!(!chain.enqueue(segment(0, 10)));
    }
}
