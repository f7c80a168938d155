//! `archive drain`: sends the sealed segments that a retired machine left in its data directory.
//!
//! The rules are the uploader's (4.2, 4.3): create-only PUTs at the chain's end, in order, and what stands is followed.
//! So it is safe beside live workers, which follow what is put here just as they follow each other. Without the log
//! there is less to go by than in a daemon (4.5), so a segment is removed only when each of its records was found in
//! the archive; whatever else may be true of it, it stays where it is and is reported.

mod coverage;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;

use super::{ArchiveReader, readable};
use crate::{
    archive::{
        spool::segment::{self, Scan, SealedSegment, UnreadableHeader},
        upload::{Head, explain_probe, objects::ListedObject, opening::Heads as _},
    },
    data_dir,
    position::{Offset, Partition},
};

/// What to do about records that the archive has not.
const AGAIN: &str = "Run a worker of this topic until its lag is 0, and drain again; if the log has lost them, \
                     this file alone has its records: keep it (zstdcat shows them)";

/// What became of one segment.
#[derive(Debug)]
pub struct Outcome {
    /// Its data.
    pub file: PathBuf,
    /// As the spool's folder names it.
    pub topic: String,
    /// Partition, chain offset and end; none where its header cannot be read.
    pub range: Option<(Partition, Offset, Offset)>,
    pub fate: Fate,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Fate {
    /// Its object stands now; removed here.
    Sent,
    /// The archive had its records already; removed here.
    Archived,
    /// Nothing was changed: why, and what to do.
    Left(String),
}

/// Sends what can be sent, and hands each segment's fate to `tell`. Blocks.
///
/// # Errors
/// When `dir` is no data directory or in use, or when the store does not answer.
pub fn drain(reader: &ArchiveReader, dir: &Path, mut tell: impl FnMut(&Outcome)) -> anyhow::Result<()> {
    let spool = dir.join("spool");
    if !spool.is_dir() && !dir.join("instance").is_file() {
        bail!("{} is no data directory of ingestd: it has neither spool/ nor instance", dir.display());
    }
    let _lock = data_dir::lock(dir)?;
    let mut probed = false;
    for (topic, path) in folders(&spool)? {
        for (folder, path) in folders(&path)? {
            let Scan { segments, unreadable } =
                segment::sealed_in(&path).with_context(|| format!("cannot look through {}", path.display()))?;
            for UnreadableHeader { path: file, why, .. } in unreadable {
                let why = format!("its header cannot be read ({why}): what it holds is shown by zstdcat");
                tell(&Outcome { file, topic: topic.clone(), range: None, fate: Fate::Left(why) });
            }
            if !segments.is_empty() && !probed {
                let probe = reader.block_on(reader.archive.probe());
                probe.map_err(|error| anyhow!(explain_probe(&error, &reader.config)))?;
                probed = true;
            }
            let mut draining = Draining { reader, dir, topic: &topic, folder: &folder, chain: None, put: None };
            draining.segments(segments, &mut tell)?;
        }
    }
    Ok(())
}

/// The folders below `parent`, by name; none where it does not exist.
fn folders(parent: &Path) -> anyhow::Result<Vec<(String, PathBuf)>> {
    let read = || -> io::Result<Vec<_>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(parent)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                found.push((entry.file_name().to_string_lossy().into_owned(), entry.path()));
            }
        }
        found.sort();
        Ok(found)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        found => found.with_context(|| format!("cannot look through {}", parent.display())),
    }
}

/// One partition's chain, as far as it is known.
struct Chain {
    head: Head,
    end: Offset,
    objects: Vec<ListedObject>,
    /// Nothing was put since the objects were listed.
    listed: bool,
}

struct Draining<'a> {
    reader: &'a ArchiveReader,
    dir: &'a Path,
    /// The folders that the segments lie in.
    topic: &'a str,
    folder: &'a str,
    chain: Option<Chain>,
    /// The object that was put last.
    put: Option<String>,
}

/// Why a segment stays where it is.
enum Stays {
    Because(String),
    /// The store does not answer, and nothing more can be done.
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for Stays {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl Draining<'_> {
    /// At most so often a segment is tried while others extend the chain.
    const ATTEMPTS: usize = 10;

    fn segments(&mut self, segments: Vec<SealedSegment>, tell: &mut impl FnMut(&Outcome)) -> anyhow::Result<()> {
        for segment in segments {
            let fate = match self.is_of_this_archive(&segment).and_then(|()| self.segment(&segment)) {
                Ok(fate) => {
                    let what = || format!("{} is in the archive, but cannot be removed", segment.path.display());
                    segment.remove().with_context(what)?;
                    fate
                }
                Err(Stays::Because(why)) => Fate::Left(why),
                Err(Stays::Failed(error)) => return Err(error),
            };
            let range = Some((segment.header.partition, segment.chain_offset(), segment.end()));
            tell(&Outcome { file: segment.path, topic: self.topic.to_owned(), range, fate });
        }
        self.write_head()
    }

    /// And of this topic.
    fn is_of_this_archive(&self, SealedSegment { header, .. }: &SealedSegment) -> Result<(), Stays> {
        let (config, topic) = (&self.reader.config, header.topic_name().to_string());
        let url = &config.archive.url;
        let why = if topic != self.reader.archive.topic {
            let (name, generation) = (&header.topic, header.generation);
            format!(
                "it is of topic {topic}: drain again with --set queue.topic={name} --set queue.generation={generation}"
            )
        } else if header.archive != *url {
            format!("it was made for the archive {}, not {url}: drain it with that one", header.archive)
        } else if url == "file:" && fs::canonicalize(self.dir).ok() != fs::canonicalize(&config.data.dir).ok() {
            format!("it was made for the archive in {0}/archive: drain with --set data.dir={0}", self.dir.display())
        } else {
            return Ok(());
        };
        Err(Stays::Because(why))
    }

    fn segment(&mut self, segment: &SealedSegment) -> Result<Fate, Stays> {
        let archive = &self.reader.archive;
        let unreadable = |error: io::Error| {
            Stays::Because(format!("{error}: its records are archived from the log, or lost with this file"))
        };
        let data = Bytes::from(segment.read().map_err(unreadable)?);
        let object = archive.format.encode(data.clone()).map_err(unreadable)?;
        for _ in 0..Self::ATTEMPTS {
            let chain = match self.chain.take() {
                Some(chain) => chain,
                None => self.open(segment)?,
            };
            if let Err(why) = is_of_topic(&chain, segment) {
                self.chain = Some(chain);
                return Err(why);
            }
            if chain.end != segment.chain_offset() && !chain.listed {
                continue;
            }
            if chain.end != segment.chain_offset() {
                let fate = self.compare(&chain, segment, &data);
                self.chain = Some(chain);
                return fate;
            }
            let key = archive.key(&segment.header);
            match self.reader.block_on(self.reader.retry(|| archive.create(&key, object.clone()))) {
                Ok(_) => {
                    self.put = Some(key.to_string());
                    self.chain = Some(Chain { end: segment.end(), listed: false, ..chain });
                    return Ok(Fate::Sent);
                }
                // Whose object it is, the next look shows; our own, where the answer to an attempt was lost.
                Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {}
                Err(error) => return Err(self.reader.sentence(&error).into()),
            }
        }
        Err(Stays::Because("others extend its partition's chain all the time: drain again".to_owned()))
    }

    /// Of a segment that is not the next one of the chain: does the archive have its records?
    fn compare(&self, chain: &Chain, segment: &SealedSegment, data: &[u8]) -> Result<Fate, Stays> {
        let x = segment.chain_offset();
        Err(Stays::Because(match coverage::missing(self.reader, &chain.objects, segment, data) {
            Ok(None) => return Ok(Fate::Archived),
            Err(Stays::Failed(error)) => return Err(error.into()),
            Err(Stays::Because(what)) => format!("{what}: compare both before you remove it by hand"),
            Ok(Some(_)) if x > chain.end => format!(
                "it does not chain yet: the archive ends at {0}, and offsets {0} to {x} come before it. {AGAIN}",
                chain.end
            ),
            Ok(Some((first, end))) => format!("offsets {first} to {end} are not in the archive. {AGAIN}"),
        }))
    }

    /// Reads the head, and finds the chain's true end.
    fn open(&self, segment: &SealedSegment) -> Result<Chain, Stays> {
        let (reader, partition) = (self.reader, segment.header.partition);
        let archive = &reader.archive;
        let unreadable = |what| Stays::Because(format!("the archive's chain cannot be read: {what}"));
        let Some(head) = reader.ask(|| readable(archive.head(partition)))?.map_err(unreadable)? else {
            return Err(Stays::Because(format!(
                "the archive has no chain of partition {partition}: a worker of this topic begins one when it starts"
            )));
        };
        let mut objects = reader.ask(|| archive.list_objects())?.objects;
        objects.retain(|object| object.name.partition == partition);
        let mut end = head.end;
        if let Some(last) = objects.last() {
            let key = reader.key(last);
            reader.ask(|| archive.settle(&key))?;
            end = end.max(coverage::end_of(reader, last).map_err(|stays| match stays {
                Stays::Because(why) => unreadable(why),
                failed => failed,
            })?);
        }
        Ok(Chain { head, end, objects, listed: true })
    }

    /// Brings the head up to date: who starts next finds the end at once, and a worker that stands halted at a gap
    /// sees by it that the gap was filled.
    fn write_head(&mut self) -> anyhow::Result<()> {
        let Some(Chain { head, end, objects, .. }) = self.chain.take() else { return Ok(()) };
        let (archive, partition) = (&self.reader.archive, self.folder.parse().map(Partition)?);
        let last = || objects.last().map(|object| self.reader.key(object).to_string());
        let head = Head { end, key: self.put.take().or_else(last), ..head };
        let written = self.reader.block_on(async {
            match archive.head(partition).await {
                Ok(Some(now)) if now.end < end => archive.write_head(partition, &head).await,
                _ => Ok(()),
            }
        });
        if let Err(error) = written {
            // An older head is allowed; draining again writes it.
            tracing::debug!(%partition, %error, "head not rewritten; the older one stands");
        }
        Ok(())
    }
}

fn is_of_topic(chain: &Chain, segment: &SealedSegment) -> Result<(), Stays> {
    let (archived, ours) = (&chain.head.identity, &segment.header.identity);
    if archived.contradicts(&ours.0) {
        return Err(Stays::Because(format!(
            "it is of another topic of the same name (identity {ours}, the archive's is {archived}): it belongs to no \
             chain of this archive"
        )));
    }
    Ok(())
}
