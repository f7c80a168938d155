//! gzip (RFC 1952) and deflate (RFC 1951, with zlib's frame of RFC 1950 or without), by zlib-rs.

use flate2::{Decompress, DecompressError, FlushDecompress, Status};

use super::decode::{Decode, Fault};

/// zlib's state, and its window, from the start.
const MEMORY: usize = 48 << 10;
const WINDOW_BITS: u8 = 15;

/// One step of zlib; how many bytes it took, and whether the stream is at its end.
///
/// `Finish` says "go as far as you can" as any other flush does.
fn inflate(zlib: &mut Decompress, input: &[u8], output: &mut Vec<u8>) -> Result<(usize, bool), DecompressError> {
    let before = zlib.total_in();
    let status = zlib.decompress_vec(input, output, FlushDecompress::Finish)?;
    Ok(((zlib.total_in() - before) as usize, status == Status::StreamEnd))
}

/// What zlib-rs says of a block's data that cannot be, in the place of why, as if that had been known before.
pub const BAD_STATE: &str = "repeated call with bad state";

fn damaged(error: &DecompressError) -> Fault {
    match (error.needs_dictionary(), error.message().filter(|why| *why != BAD_STATE)) {
        (Some(_), _) => Fault::Unsupported("needs a dictionary, which is not taken: compress it without one"),
        (None, Some(why)) => Fault::Damaged(why.to_owned().into()),
        (None, None) => Fault::Damaged("invalid stream".into()),
    }
}

/// Each member is inflated with a window of its own, which costs a microsecond however short it is: after so many that is long work.
const FEW_MEMBERS: usize = 32;

/// Members one after the other, with checksums that zlib compares.
pub struct Gzip {
    zlib: Decompress,
    /// So many are whole.
    members: usize,
    /// Nothing was read since its end.
    at_end: bool,
}

impl Gzip {
    pub fn new() -> Self {
        Self { zlib: Decompress::new_gzip(WINDOW_BITS), members: 0, at_end: false }
    }
}

impl Decode for Gzip {
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Fault> {
        if self.at_end {
            if input.is_empty() {
                return Ok(0);
            }
            self.zlib.reset(true);
            self.at_end = false;
        }
        match inflate(&mut self.zlib, input, output) {
            Ok((taken, is_end)) => {
                self.at_end = is_end;
                self.members += usize::from(is_end);
                Ok(taken)
            }
            // The first two bytes say whether it is a member.
            Err(_) if self.members > 0 && self.zlib.total_in() <= 2 => Err(Fault::Trailing),
            Err(error) => Err(damaged(&error)),
        }
    }

    fn is_complete(&self) -> bool {
        self.at_end
    }

    fn memory(&self) -> usize {
        MEMORY
    }

    fn keeps_steps_short(&self) -> bool {
        self.members < FEW_MEMBERS
    }
}

/// With zlib's frame, as RFC 9110 (8.4.1.2) has it, or without, as many clients send it.
pub struct Deflate {
    /// Once the first two bytes have told which of both it is.
    zlib: Option<Decompress>,
    /// The first byte, while it came alone.
    first: Option<u8>,
    at_end: bool,
}

impl Deflate {
    pub fn new() -> Self {
        Self { zlib: None, first: None, at_end: false }
    }
}

/// Whether a stream that begins so has zlib's frame: compression method 8, a window of at most 32 KiB, and a check of both
/// bytes. Without the frame they would begin a stored block with padding that no encoder writes.
fn is_framed(first: u8, second: u8) -> bool {
    first & 0x0f == 8 && first >> 4 <= 7 && u16::from_be_bytes([first, second]).is_multiple_of(31)
}

impl Decode for Deflate {
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Fault> {
        if self.at_end {
            return if input.is_empty() { Ok(0) } else { Err(Fault::Trailing) };
        }
        let zlib = match (&mut self.zlib, self.first, input) {
            (Some(zlib), _, _) => zlib,
            (None, None, [first]) => {
                self.first = Some(*first);
                return Ok(1);
            }
            (None, None, [first, second, ..]) => self.zlib.insert(Decompress::new(is_framed(*first, *second))),
            (None, Some(first), [second, ..]) => {
                let zlib = self.zlib.insert(Decompress::new(is_framed(first, *second)));
                // No stream is as short as that, and none gives anything yet.
                inflate(zlib, &[first], output).map_err(|error| damaged(&error))?;
                zlib
            }
            (None, _, []) => return Ok(0),
        };
        let (taken, is_end) = inflate(zlib, input, output).map_err(|error| damaged(&error))?;
        self.at_end = is_end;
        Ok(taken)
    }

    fn is_complete(&self) -> bool {
        self.at_end
    }

    fn memory(&self) -> usize {
        MEMORY
    }
}
