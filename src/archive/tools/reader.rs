//! Reads objects piece by piece: a range of bytes in memory, decoded as it is asked for, a line at a time.
//!
//! Ranges instead of one long answer: each is a request of its own, with its deadline and its attempts, so that a
//! reader that pauses (`| less`) breaks nothing.

use std::{
    io::{self, BufRead, Read},
    sync::Arc,
};

use bytes::{Buf, Bytes};
use object_store::path::Path;
use tokio::runtime::Handle;

use crate::{
    archive::upload::{
        Archive, explain, is_lasting,
        objects::{ListedObject, Listing},
    },
    config::Config,
};

/// How much of an object is asked for at once.
const PIECE: u64 = 4 << 20;
/// Above any line that a broker lets happen; what is longer is damage, and must not fill the memory.
const LONGEST_LINE: u64 = 128 << 20;
/// Attempts at a request before it has failed.
const ATTEMPTS: u32 = 3;

/// An archive that is read by a command. Cheap to clone.
#[derive(Clone)]
pub struct ArchiveReader {
    pub archive: Arc<Archive>,
    pub config: Arc<Config>,
    io: Handle,
}

/// Why an object could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// It was there when the archive was listed: expired in between.
    #[error("it is gone")]
    Gone,
    #[error("{0}")]
    Damaged(String),
    #[error(transparent)]
    Store(object_store::Error),
}

/// Carries the store's error through the decoder.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct StoreFailed(object_store::Error);

impl ArchiveReader {
    pub fn new(archive: Archive, config: Config, io: Handle) -> Self {
        Self { archive: Arc::new(archive), config: Arc::new(config), io }
    }

    /// Blocks the calling thread, which must be none of the runtime's own workers.
    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.io.block_on(future)
    }

    /// Blocks for an answer of the store.
    pub fn ask<T, F: Future<Output = object_store::Result<T>>>(&self, request: impl Fn() -> F) -> anyhow::Result<T> {
        self.block_on(self.retry(request)).map_err(|error| self.sentence(&error))
    }

    /// A failure of the store, as one sentence for the operator.
    pub fn sentence(&self, error: &object_store::Error) -> anyhow::Error {
        anyhow::anyhow!(explain(error, &self.config))
    }

    pub fn key(&self, object: &ListedObject) -> Path {
        object.name.key(&self.archive.topic)
    }

    /// What stands below the topic's folder.
    pub async fn list(&self) -> object_store::Result<Listing> {
        self.retry(|| self.archive.list_objects()).await
    }

    /// A bounded number of attempts at what may pass: a command is not a daemon.
    pub async fn retry<T, F: Future<Output = object_store::Result<T>>>(
        &self,
        request: impl Fn() -> F,
    ) -> object_store::Result<T> {
        let mut attempt = 1;
        loop {
            match request().await {
                Err(error) if attempt < ATTEMPTS && !is_lasting(&error) && !is_answer(&error) => {
                    tokio::time::sleep(self.config.upload.backoff.saturating_mul(1 << attempt)).await;
                    attempt += 1;
                }
                outcome => return outcome,
            }
        }
    }

    /// Hands each line of an object to `each`, without its end. To be called on a blocking thread.
    ///
    /// # Errors
    /// Those of `each`; within, why the object could not be read to its end.
    pub fn each_line<E>(
        &self,
        object: &ListedObject,
        mut each: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<Result<(), ReadError>, E> {
        let ranges =
            Ranges { reader: self.clone(), key: self.key(object), size: object.size, at: 0, piece: Bytes::new() };
        let mut text = match object.name.format.lines(ranges) {
            Ok(text) => text,
            Err(error) => return Ok(Err(explain_read(error))),
        };
        let mut line = Vec::new();
        loop {
            match next_line(&mut text, &mut line) {
                Ok(Some(line)) => each(line)?,
                Ok(None) => return Ok(Ok(())),
                Err(error) => return Ok(Err(error)),
            }
        }
    }
}

/// What the store says about the object, not about its own state.
fn is_answer(error: &object_store::Error) -> bool {
    use object_store::Error as E;
    matches!(error, E::AlreadyExists { .. } | E::Precondition { .. } | E::InvalidPath { .. })
}

/// The compressed bytes.
struct Ranges {
    reader: ArchiveReader,
    key: Path,
    size: u64,
    at: u64,
    piece: Bytes,
}

impl Read for Ranges {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.at < self.size {
            let range = self.at..self.size.min(self.at + PIECE);
            let get = self.reader.retry(|| self.reader.archive.get_range(&self.key, range.clone()));
            self.piece = self.reader.block_on(get).map_err(|error| io::Error::other(StoreFailed(error)))?;
            self.at += self.piece.len() as u64;
            if self.piece.is_empty() {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than the store lists it"));
            }
        }
        let length = into.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut into[..length]);
        Ok(length)
    }
}

/// The next line without its end, in the place of the one before; `None` after the last.
fn next_line<'a>(text: &mut impl BufRead, line: &'a mut Vec<u8>) -> Result<Option<&'a [u8]>, ReadError> {
    line.clear();
    text.take(LONGEST_LINE).read_until(b'\n', line).map_err(explain_read)?;
    match line.as_slice() {
        [] => Ok(None),
        [line @ .., b'\n'] => Ok(Some(line)),
        line if line.len() as u64 == LONGEST_LINE => {
            Err(ReadError::Damaged(format!("a line of it is longer than {} MiB", LONGEST_LINE >> 20)))
        }
        _ => Err(ReadError::Damaged("its last line has no end".to_owned())),
    }
}

fn explain_read(error: io::Error) -> ReadError {
    match error.downcast::<StoreFailed>() {
        Ok(StoreFailed(object_store::Error::NotFound { .. })) => ReadError::Gone,
        Ok(StoreFailed(error)) => ReadError::Store(error),
        Err(error) => ReadError::Damaged(format!("it cannot be decompressed: {error}")),
    }
}
