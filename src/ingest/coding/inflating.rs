//! A body that is inflated while it arrives, within its limits.

use actix_web::http::StatusCode;
use bytes::{Buf, Bytes};

use super::{
    Coding,
    decode::{Decode, Fault},
};
use crate::{http::Problem, ingest::in_flight::Reservation};

/// How many bytes of JSON a compressed one makes, for the first guess: those of one request have most of their text in
/// common.
const USUAL_RATIO: usize = 6;
const SMALLEST: usize = 4 << 10;

/// What is inflated where it arrives, before and behind the decoder; what is longer keeps a core busy for milliseconds.
const SHORT_INPUT: usize = 32 << 10;
const SHORT: usize = 256 << 10;

/// The room that so many compressed bytes usually need.
fn usual(compressed: usize) -> usize {
    compressed.saturating_mul(USUAL_RATIO).clamp(SMALLEST, SHORT)
}

/// What of a body has been inflated.
pub struct Inflating {
    coding: Coding,
    decoder: Box<dyn Decode>,
    inflated: Vec<u8>,
    max_body: usize,
    /// Compressed bytes so far.
    taken: usize,
    share: Reservation,
}

impl Inflating {
    /// `arrived` is how many bytes have come so far: most bodies come in one piece. What a head says of them is no reason to
    /// take room for them.
    pub fn new(coding: Coding, arrived: usize, max_body: usize, share: Reservation) -> Self {
        let inflated = Vec::with_capacity(usual(arrived).min(max_body + 1));
        Self { coding, decoder: coding.decoder(), inflated, max_body, taken: 0, share }
    }

    /// Inflates a piece where that is short work. Whether it did; else [`Inflating::push`] does the rest.
    ///
    /// # Errors
    /// As [`Inflating::push`].
    pub fn push_short(&mut self, piece: &mut Bytes) -> Result<bool, Problem> {
        let is_short = self.taken + piece.len() <= SHORT_INPUT && self.inflated.capacity() <= SHORT;
        if is_short && self.decoder.keeps_steps_short() { self.inflate(piece, SHORT) } else { Ok(false) }
    }

    /// Inflates a piece, which may keep a core busy for long: until `max_body` is reached.
    ///
    /// # Errors
    /// 400 for a stream that is damaged, 413 where more comes out than `max_body`, 415 for what a coding may ask for and is
    /// not given; busy, when `http.max_in_flight` is spent.
    pub fn push(&mut self, mut piece: Bytes) -> Result<(), Problem> {
        self.inflate(&mut piece, usize::MAX).map(drop)
    }

    /// Goes on while no more than `most` bytes are inflated. Whether the piece is done.
    fn inflate(&mut self, piece: &mut Bytes, most: usize) -> Result<bool, Problem> {
        loop {
            if self.inflated.len() == self.inflated.capacity() && !self.make_room(usual(piece.len()), most)? {
                return Ok(false);
            }
            self.count(piece.len())?;
            let before = self.inflated.len();
            let taken = self.decoder.step(piece, &mut self.inflated).map_err(|fault| self.coding.refused(&fault))?;
            piece.advance(taken);
            self.taken += taken;
            if self.inflated.len() > self.max_body {
                return Err(self.too_large());
            }
            if self.inflated.len() < self.inflated.capacity() {
                if piece.is_empty() {
                    self.count(0)?;
                    return Ok(true);
                }
                if most < usize::MAX && !self.decoder.keeps_steps_short() {
                    return Ok(false);
                }
                if taken == 0 && self.inflated.len() == before {
                    return Err(self.coding.refused(&Fault::Damaged("it does not go on".into())));
                }
            }
        }
    }

    /// Twice of what there is, or so much. For one byte more than allowed at most, which is how a body shows that it has more.
    fn make_room(&mut self, wanted: usize, most: usize) -> Result<bool, Problem> {
        let have = self.inflated.capacity();
        if have > self.max_body {
            return Err(self.too_large());
        }
        let most = most.min(self.max_body + 1);
        if have >= most {
            return Ok(false);
        }
        self.inflated.reserve_exact((2 * have).max(wanted).min(most) - have);
        Ok(true)
    }

    /// Counts what is held: of the piece these bytes, the inflated ones and the room for more, and the decoder. All that
    /// never counts for more than the largest body, so that one of that size gets in where nothing else is in flight.
    fn count(&mut self, of_piece: usize) -> Result<(), Problem> {
        let held = of_piece + self.inflated.capacity() + self.decoder.memory();
        self.share.resize(held.min(self.max_body))
    }

    fn too_large(&self) -> Problem {
        let (name, max_body) = (self.coding.name(), self.max_body);
        let detail = format!(
            "the body inflates from {name} to more than {max_body} bytes (http.max_body): send it in smaller requests"
        );
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, detail)
    }

    /// The whole body, counted with its bytes alone. One of no bytes at all has nothing to inflate.
    ///
    /// # Errors
    /// 400 where the stream has not come to its end.
    pub fn finish(mut self) -> Result<Bytes, Problem> {
        if self.taken > 0 && !self.decoder.is_complete() {
            return Err(self.coding.refused(&Fault::Cut));
        }
        self.inflated.shrink_to_fit();
        self.share.resize(self.inflated.len())?;
        Ok(self.share.hold(self.inflated))
    }
}
