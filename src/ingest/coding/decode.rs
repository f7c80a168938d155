//! What every decoder does.

use std::borrow::Cow;

/// Inflates the stream that is pushed through it.
pub trait Decode: Send {
    /// Takes bytes of `input` and puts what comes of them into the spare capacity of `output`, which it never grows. There
    /// is some, and it goes on until it has taken all or no capacity is left. Returns how many bytes it has taken.
    ///
    /// # Errors
    /// Why the stream is refused; then it is of no more use.
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Fault>;

    /// Whether a body may end here.
    fn is_complete(&self) -> bool;

    /// Bytes that it holds itself: windows, tables.
    fn memory(&self) -> usize;

    /// Whether the next [`Decode::step`] does no more work than its input and the spare capacity of its output ask for.
    fn keeps_steps_short(&self) -> bool {
        true
    }
}

/// Why a stream is refused.
#[derive(Debug, PartialEq, Eq)]
pub enum Fault {
    /// It breaks the rules of its coding, in the decoder's words, or fails its checksum.
    Damaged(Cow<'static, str>),
    /// What follows it does not belong to it.
    Trailing,
    /// It ended too early.
    Cut,
    /// It is right, and asks for what is not given: the sentence goes on behind "the body's … stream".
    Unsupported(&'static str),
}
