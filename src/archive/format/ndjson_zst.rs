//! Lines, compressed by zstd: what a segment holds, and so what can be put as it is.

use std::io::{self, BufRead, BufReader, Read};

/// # Errors
/// When the decoder cannot be made.
pub(super) fn lines(data: impl Read) -> io::Result<impl BufRead> {
    Ok(BufReader::with_capacity(128 * 1024, zstd::Decoder::new(data)?))
}
