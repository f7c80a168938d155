//! What the spooler, which decides, and the uploader, which carries segments, say to each other. Each message is about one
//! assignment of a partition: what an earlier one was told is told apart by its epoch.

use actix::Message;

use super::{
    partition::Input,
    spool::segment::SealedSegment,
    upload::opening::{Head, Known},
};
use crate::{
    log::{Assignment, Epoch},
    position::{Offset, Partition},
};

/// From the spooler, as its effects of these names say.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub enum Transfer {
    OpenChain { epoch: Epoch, assignment: Assignment, known: Known },
    Put { epoch: Epoch, segment: SealedSegment },
    AskAboutGap { partition: Partition, epoch: Epoch, end: Offset },
    WriteHead { partition: Partition, head: Head },
}

/// From the uploader: what was found.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Found(pub Input);

/// From the uploader, at the stop: answered when nothing more can be put, with the heads that are older than their chains.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "Vec<(Partition, Head)>")]
pub struct WhenUploaded;
