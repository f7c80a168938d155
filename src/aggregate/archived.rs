//! The archive, as a rebuild reads it: the objects of a partition in the order of its chain, line by line.

use std::{ops::ControlFlow, sync::Arc};

use tokio::runtime::Handle;

use super::history::{Archived, Chain, Piece, Wanted};
use crate::{
    archive::{
        line::Line,
        tools::{ArchiveReader, reader::ReadError},
        upload::{Archive, objects::ListedObject},
    },
    config::LiveConfig,
    log::record::RecordBuffer,
    position::{Offset, Timestamp},
};

/// The archive of the configuration; nothing where there is none.
pub fn configured_archive(config: LiveConfig, io: Handle) -> Option<Arc<dyn Archived>> {
    let is_on = config.load().archive.is_on();
    is_on.then(|| Arc::new(ConfiguredArchive { config, io }) as Arc<dyn Archived>)
}

/// It is opened when it is read, as a folder may not be there before.
struct ConfiguredArchive {
    config: LiveConfig,
    io: Handle,
}

impl ConfiguredArchive {
    fn open(&self) -> anyhow::Result<ArchiveReader> {
        let config = self.config.load_full();
        let archive = Archive::open_existing(&config, config.queue.name().to_string())?;
        Ok(ArchiveReader::new(archive, (*config).clone(), self.io.clone()))
    }
}

/// Bytes of records that are handed out at once.
const PIECE: usize = 1 << 20;

enum Stop {
    Enough,
    /// What comes is not asked for.
    Until,
    Damaged(String),
    /// Records before this object, whose first one was received then.
    Missing(Timestamp),
}

impl Archived for ConfiguredArchive {
    fn chains(&self) -> anyhow::Result<Vec<Chain>> {
        let reader = self.open()?;
        let objects = reader.ask(|| reader.archive.list_objects())?.objects;
        let mut chains: Vec<Chain> = Vec::new();
        for object in &objects {
            let partition = object.name.partition;
            if chains.last().is_some_and(|chain| chain.partition == partition) {
                continue;
            }
            let begins_late = match object.name.chain_offset {
                Offset(0) => None,
                _ => first_received(&reader, object)?,
            };
            chains.push(Chain { partition, begins_late });
        }
        Ok(chains)
    }

    fn each(&self, wanted: Wanted, take: &mut dyn FnMut(Piece) -> ControlFlow<()>) -> anyhow::Result<()> {
        /// An object more or less: the log has what was archived meanwhile.
        const FEW: usize = 100;
        let reader = self.open()?;
        let mut cursor = wanted.from;
        loop {
            // Again, as more is archived meanwhile.
            let mut objects = reader.ask(|| reader.archive.list_objects())?.objects;
            objects.retain(|object| object.name.partition == wanted.partition);
            let mut read = 0;
            for (at, object) in objects.iter().enumerate() {
                let next = objects.get(at + 1).map(|next| next.name.chain_offset);
                if next.is_some_and(|next| next <= cursor) {
                    continue;
                }
                if cursor >= wanted.until {
                    return Ok(());
                }
                match each_of(&reader, object, Wanted { from: cursor, ..wanted }, take)? {
                    ControlFlow::Continue(end) => cursor = cursor.max(end),
                    ControlFlow::Break(()) => return Ok(()),
                }
                read += 1;
            }
            if read < FEW {
                return Ok(());
            }
        }
    }
}

/// When the first record of an object was received; nothing where it has none.
fn first_received(reader: &ArchiveReader, object: &ListedObject) -> anyhow::Result<Option<Timestamp>> {
    let read = reader.each_line(object, |text| Err(Line::parse(text).map(|line| line.received)));
    match read {
        Ok(Ok(())) => Ok(None),
        Ok(Err(ReadError::Store(error))) => Err(reader.sentence(&error)),
        Ok(Err(why)) => anyhow::bail!("the archive's object {}: {why}", reader.key(object)),
        Err(Ok(received)) => Ok(Some(Timestamp(received.timestamp_millis()))),
        Err(Err(why)) => anyhow::bail!("a line of the archive's object {}: {why}", reader.key(object)),
    }
}

/// Hands out the records of one object from `wanted.from` on; gives where they end.
fn each_of(
    reader: &ArchiveReader,
    object: &ListedObject,
    wanted: Wanted,
    take: &mut dyn FnMut(Piece) -> ControlFlow<()>,
) -> anyhow::Result<ControlFlow<(), Offset>> {
    let (from, begins) = (wanted.from, object.name.chain_offset);
    let mut piece = Piece { from, to: from, records: RecordBuffer::default() };
    let mut is_first = true;
    let read = reader.each_line(object, |text| {
        let line = Line::parse(text).map_err(Stop::Damaged)?;
        let received = Timestamp(line.received.timestamp_millis());
        if std::mem::take(&mut is_first) && from < begins && wanted.complete_from.is_none_or(|at| at < received) {
            return Err(Stop::Missing(received));
        }
        if line.offset < piece.to {
            return Ok(());
        }
        if line.offset >= wanted.until {
            return Err(Stop::Until);
        }
        let headers = line.all_headers();
        let headers = headers.ok_or_else(|| Stop::Damaged("a header of it cannot be read".to_owned()))?;
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        piece.records.push(line.offset, received, None, line.value().as_deref(), headers);
        piece.to = line.offset.next();
        if piece.records.size() < PIECE {
            return Ok(());
        }
        let empty = Piece { from: piece.to, to: piece.to, records: RecordBuffer::default() };
        match take(std::mem::replace(&mut piece, empty)) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(Stop::Enough),
        }
    });
    let key = || reader.key(object);
    match read {
        Ok(Ok(())) => {}
        Err(Stop::Until) => piece.to = wanted.until,
        Ok(Err(ReadError::Store(error))) => return Err(reader.sentence(&error)),
        Ok(Err(why)) => anyhow::bail!("the archive's object {}: {why}", key()),
        Err(Stop::Enough) => return Ok(ControlFlow::Break(())),
        Err(Stop::Damaged(why)) => anyhow::bail!("a line of the archive's object {}: {why}", key()),
        Err(Stop::Missing(received)) => anyhow::bail!(
            "offsets {from} to {begins} stand in no object of the archive: bring them back, or cancel this rebuild and begin one from a \
             window after {} on (--from), which keeps the counts of before",
            received.to_rfc3339()
        ),
    }
    let end = piece.to;
    Ok(match take(piece) {
        ControlFlow::Continue(()) => ControlFlow::Continue(end),
        ControlFlow::Break(()) => ControlFlow::Break(()),
    })
}
