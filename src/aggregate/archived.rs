//! The archive, as a rebuild reads it: the objects of a partition in the order of its chain, line by line.

use std::{ops::ControlFlow, sync::Arc};

use tokio::runtime::Handle;

use super::history::{Archived, Chain, Piece};
use crate::{
    archive::{
        line::Line,
        tools::{ArchiveReader, reader::ReadError},
        upload::{Archive, objects::ListedObject},
    },
    config::LiveConfig,
    log::record::RecordBuffer,
    position::{Offset, Partition, Timestamp},
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
    Damaged(String),
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

    fn each(
        &self,
        partition: Partition,
        from: Offset,
        take: &mut dyn FnMut(Piece) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        let reader = self.open()?;
        let mut cursor = from;
        loop {
            // Again, as more is archived meanwhile.
            let mut objects = reader.ask(|| reader.archive.list_objects())?.objects;
            objects.retain(|object| object.name.partition == partition);
            let before = cursor;
            for (at, object) in objects.iter().enumerate() {
                // Offsets that the chain passes over have no records.
                let next = objects.get(at + 1).map(|next| next.name.chain_offset);
                if next.is_some_and(|next| next <= cursor) {
                    continue;
                }
                let start = cursor.max(object.name.chain_offset);
                match each_of(&reader, object, start, next, take)? {
                    ControlFlow::Continue(end) => cursor = end,
                    ControlFlow::Break(()) => return Ok(()),
                }
            }
            if cursor == before {
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

/// Hands out the records of one object from `start` on; gives where they end.
fn each_of(
    reader: &ArchiveReader,
    object: &ListedObject,
    start: Offset,
    next: Option<Offset>,
    take: &mut dyn FnMut(Piece) -> ControlFlow<()>,
) -> anyhow::Result<ControlFlow<(), Offset>> {
    let mut piece = Piece { from: start, to: start, records: RecordBuffer::default() };
    let read = reader.each_line(object, |text| {
        let line = Line::parse(text).map_err(Stop::Damaged)?;
        if line.offset < piece.to {
            return Ok(());
        }
        let headers = line.all_headers();
        let headers = headers.ok_or_else(|| Stop::Damaged("a header of it cannot be read".to_owned()))?;
        let headers = headers.iter().map(|(name, value)| (name.as_str(), value.as_deref()));
        let received = Timestamp(line.received.timestamp_millis());
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
    match read {
        Ok(Ok(())) => {}
        Ok(Err(ReadError::Store(error))) => return Err(reader.sentence(&error)),
        Ok(Err(why)) => anyhow::bail!("the archive's object {}: {why}", reader.key(object)),
        Err(Stop::Enough) => return Ok(ControlFlow::Break(())),
        Err(Stop::Damaged(why)) => anyhow::bail!("a line of the archive's object {}: {why}", reader.key(object)),
    }
    piece.to = next.unwrap_or(piece.to).max(piece.to);
    let end = piece.to;
    Ok(match take(piece) {
        ControlFlow::Continue(()) => ControlFlow::Continue(end),
        ControlFlow::Break(()) => ControlFlow::Break(()),
    })
}
