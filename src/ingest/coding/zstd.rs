//! Zstandard (RFC 8878), with windows as RFC 9659 bounds them for content codings, by libzstd.

use zstd::zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer, get_error_name};

use super::decode::{Decode, Fault};

/// RFC 9659: a decoder must have 8 MiB, and a frame that needs more is not to be sent.
const LARGEST_WINDOW: u64 = 8 << 20;
const LARGEST_WINDOW_LOG: u32 = 23;
/// Of a frame: magic number, descriptor, window, dictionary id, content size.
const LONGEST_HEAD: usize = 18;

/// Frames one after the other, and skippable ones between them.
pub struct Zstd {
    libzstd: DCtx<'static>,
    /// The beginning of a frame whose head is not whole yet.
    head: [u8; LONGEST_HEAD],
    head_length: usize,
    in_frame: bool,
    /// What the frame says that it holds, and what came of it so far. libzstd compares them, but not where the last block is
    /// empty.
    content: Option<u64>,
    inflated: u64,
    /// A frame was whole.
    has_frame: bool,
}

/// What a frame's first bytes say. libzstd does not look at the window of a frame that fits into the output at once, and
/// takes formats of before version 1.
#[derive(Debug, PartialEq, Eq)]
enum Head {
    Incomplete,
    Skippable,
    Frame { window: u64, content: Option<u64>, has_dictionary: bool },
    Foreign,
}

/// RFC 8878, 3.1.1.1 and 3.1.2.
fn head(bytes: &[u8]) -> Head {
    const FRAME: u32 = 0xfd2f_b528;
    const SKIPPABLE: u32 = 0x184d_2a50;
    let Some((magic, rest)) = bytes.split_first_chunk() else { return Head::Incomplete };
    match u32::from_le_bytes(*magic) {
        FRAME => frame(rest).unwrap_or(Head::Incomplete),
        magic if magic & 0xffff_fff0 == SKIPPABLE => Head::Skippable,
        _ => Head::Foreign,
    }
}

/// `None` while it is not whole.
fn frame(bytes: &[u8]) -> Option<Head> {
    let (descriptor, mut rest) = bytes.split_first()?;
    let is_single_segment = descriptor & 0x20 != 0;
    let mut window = None;
    if !is_single_segment {
        let (byte, behind) = rest.split_first()?;
        let base = 1u64 << (10 + (byte >> 3));
        window = Some(base + base / 8 * u64::from(byte & 7));
        rest = behind;
    }
    let (id, rest) = rest.split_at_checked([0, 1, 2, 4][usize::from(descriptor & 3)])?;
    let size = match (descriptor >> 6, is_single_segment) {
        (0, false) => 0,
        (log, _) => 1 << log,
    };
    let (size, _) = rest.split_at_checked(size)?;
    let mut bytes = [0; 8];
    bytes[..size.len()].copy_from_slice(size);
    // Two bytes count from 256 on.
    let content = u64::from_le_bytes(bytes).saturating_add(if size.len() == 2 { 256 } else { 0 });
    Some(Head::Frame {
        window: window.unwrap_or(content),
        content: (!size.is_empty()).then_some(content),
        has_dictionary: id.iter().any(|byte| *byte != 0),
    })
}

impl Zstd {
    pub fn new() -> Self {
        let mut libzstd = DCtx::create();
        // A second line behind `begin`.
        let _ = libzstd.set_parameter(DParameter::WindowLogMax(LARGEST_WINDOW_LOG));
        Self {
            libzstd,
            head: [0; LONGEST_HEAD],
            head_length: 0,
            in_frame: false,
            content: None,
            inflated: 0,
            has_frame: false,
        }
    }

    /// Begins a frame that begins with these bytes. Whether it could: they may be too few.
    fn begin(&mut self, bytes: &[u8]) -> Result<bool, Fault> {
        match head(bytes) {
            Head::Incomplete => Ok(false),
            Head::Foreign if self.has_frame => Err(Fault::Trailing),
            Head::Foreign => Err(Fault::Damaged("it does not begin with a frame".into())),
            Head::Frame { window, .. } if window > LARGEST_WINDOW => {
                Err(Fault::Unsupported("needs a window above 8 MiB (RFC 9659): compress it with a smaller one"))
            }
            Head::Frame { has_dictionary: true, .. } => {
                Err(Fault::Unsupported("needs a dictionary, which is not taken: compress it without one"))
            }
            Head::Frame { content, .. } => {
                (self.content, self.inflated) = (content, 0);
                Ok(true)
            }
            Head::Skippable => {
                (self.content, self.inflated) = (None, 0);
                Ok(true)
            }
        }
    }

    /// One call of libzstd; how many bytes it took.
    fn inflate(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut input = InBuffer::around(input);
        let end = output.len();
        let hint = self.libzstd.decompress_stream(&mut OutBuffer::around_pos(output, end), &mut input);
        let hint = hint.map_err(|code| Fault::Damaged(get_error_name(code).into()))?;
        let taken = input.pos();
        self.inflated += (output.len() - end) as u64;
        self.in_frame = hint > 0;
        if !self.in_frame {
            self.has_frame = true;
            if self.content.is_some_and(|content| content != self.inflated) {
                return Err(Fault::Damaged("a frame does not hold as much as it says".into()));
            }
        }
        Ok(taken)
    }
}

impl Decode for Zstd {
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Fault> {
        if self.in_frame {
            return self.inflate(input, output);
        }
        if self.head_length == 0 && self.begin(input)? {
            return self.inflate(input, output);
        }
        // The rest of the head is in other pieces. libzstd is given all of it at once: where it has only a part, it takes
        // what follows for the beginning of the frame.
        let room = &mut self.head[self.head_length..];
        let taken = room.len().min(input.len());
        room[..taken].copy_from_slice(&input[..taken]);
        for length in self.head_length..=self.head_length + taken {
            let head = self.head;
            if self.begin(&head[..length])? {
                let of_input = length - self.head_length;
                self.head_length = 0;
                self.inflate(&head[..length], output)?;
                return Ok(of_input);
            }
        }
        self.head_length += taken;
        Ok(taken)
    }

    fn is_complete(&self) -> bool {
        self.has_frame && !self.in_frame && self.head_length == 0
    }

    fn memory(&self) -> usize {
        self.libzstd.sizeof()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frames_head_says_its_window_as_the_rfc_has_it() {
        let streamed = |window| Head::Frame { window, content: None, has_dictionary: false };
        let sized = |content, has_dictionary| Head::Frame { window: content, content: Some(content), has_dictionary };
        let magic = [0x28, 0xb5, 0x2f, 0xfd];
        for (rest, expected) in [
            // A window descriptor: 1 KiB, 8 MiB, and the next that can be said above it.
            (&[0x00, 0x00][..], streamed(1 << 10)),
            (&[0x00, 13 << 3], streamed(8 << 20)),
            (&[0x00, 13 << 3 | 1], streamed(9 << 20)),
            (&[0x00, 0xff], streamed((1 << 41) + 7 * (1 << 38))),
            // A single segment: the window is the content, of one, two, four or eight bytes.
            (&[0x20, 5], sized(5, false)),
            (&[0x60, 0, 1], sized(512, false)),
            (&[0xa0, 0, 0, 0, 1], sized(1 << 24, false)),
            (&[0xe0, 0, 0, 0, 0, 1, 0, 0, 0], sized(1 << 32, false)),
            // A dictionary, and one that is none.
            (&[0x21, 7, 5], sized(5, true)),
            (&[0x23, 0, 0, 0, 0, 5], sized(5, false)),
            // Not whole.
            (&[], Head::Incomplete),
            (&[0x00], Head::Incomplete),
            (&[0xe0, 0, 0, 0, 0, 1, 0, 0], Head::Incomplete),
        ] {
            assert_eq!(head(&[&magic, rest].concat()), expected, "{rest:?}");
        }
        assert_eq!(head(&[0x28, 0xb5, 0x2f]), Head::Incomplete);
        assert_eq!(head(&[0x5f, 0x2a, 0x4d, 0x18]), Head::Skippable);
        // A format of before version 1, and no format.
        assert_eq!(head(&[0x27, 0xb5, 0x2f, 0xfd, 0, 0]), Head::Foreign);
        assert_eq!(head(b"{\"type\":\"a\"}"), Head::Foreign);
    }
}
