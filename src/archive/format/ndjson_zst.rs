//! Lines, compressed by zstd: what a segment holds, so that it can be put as it is.

use std::io::{self, BufRead, BufReader, Read};

pub(super) fn lines(data: impl Read) -> io::Result<impl BufRead> {
    Ok(BufReader::with_capacity(128 * 1024, zstd::Decoder::new(data)?))
}
