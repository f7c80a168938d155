//! Brotli (RFC 7932), without the large windows that its authors added later.

use brotli_decompressor::{
    Allocator, BrotliDecoderErrorCode, BrotliDecoderIsFinished, BrotliDecoderTakeOutput, BrotliDecompressStream,
    BrotliResult, BrotliState, SliceWrapper, SliceWrapperMut,
};

use super::decode::{Decode, Fault};

/// The heap, of which the decoder's share is known.
#[derive(Default)]
struct Counted {
    bytes: usize,
}

/// What the decoder was given of it.
struct Cells<T>(Box<[T]>);

impl<T> Default for Cells<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T> SliceWrapper<T> for Cells<T> {
    fn slice(&self) -> &[T] {
        &self.0
    }
}

impl<T> SliceWrapperMut<T> for Cells<T> {
    fn slice_mut(&mut self) -> &mut [T] {
        &mut self.0
    }
}

impl<T: Clone + Default> Allocator<T> for Counted {
    type AllocatedMemory = Cells<T>;

    fn alloc_cell(&mut self, length: usize) -> Cells<T> {
        self.bytes += length * size_of::<T>();
        Cells(vec![T::default(); length].into())
    }

    fn free_cell(&mut self, cells: Cells<T>) {
        self.bytes = self.bytes.saturating_sub(size_of_val(&*cells.0));
    }
}

/// One stream, whose window is at most 16 MiB. It is allocated as large as what a stream's parts say that they hold.
pub struct Brotli(Box<State>);

type State = BrotliState<Counted, Counted, Counted>;

impl Brotli {
    pub fn new() -> Self {
        // Strict: without large windows.
        Self(Box::new(State::new_strict(Counted::default(), Counted::default(), Counted::default())))
    }

    /// What was inflated and fits.
    fn take(&mut self, output: &mut Vec<u8>) {
        loop {
            let mut room = output.capacity() - output.len();
            // (No room would stand for any.)
            if room == 0 {
                return;
            }
            let inflated = BrotliDecoderTakeOutput(&mut self.0, &mut room);
            if inflated.is_empty() {
                return;
            }
            output.extend_from_slice(inflated);
        }
    }

    fn is_finished(&self) -> bool {
        BrotliDecoderIsFinished(&self.0)
    }
}

impl Decode for Brotli {
    fn step(&mut self, input: &[u8], output: &mut Vec<u8>) -> Result<usize, Fault> {
        let mut taken = 0;
        self.take(output);
        loop {
            if self.is_finished() {
                return if taken < input.len() { Err(Fault::Trailing) } else { Ok(taken) };
            }
            if output.len() == output.capacity() {
                return Ok(taken);
            }
            let (mut left, before) = (input.len() - taken, (taken, output.len()));
            // Output is taken from the decoder's window, which spares filling ours with zeros first.
            let result =
                BrotliDecompressStream(&mut left, &mut taken, input, &mut 0, &mut 0, &mut [], &mut 0, &mut self.0);
            self.take(output);
            match result {
                BrotliResult::ResultFailure => return Err(fault(self.0.error_code)),
                BrotliResult::NeedsMoreInput => return Ok(taken),
                BrotliResult::NeedsMoreOutput if before == (taken, output.len()) => {
                    return Err(Fault::Damaged("it does not go on".into()));
                }
                BrotliResult::NeedsMoreOutput | BrotliResult::ResultSuccess => {}
            }
        }
    }

    fn is_complete(&self) -> bool {
        self.is_finished()
    }

    fn memory(&self) -> usize {
        let state = &*self.0;
        size_of::<State>() + state.alloc_u8.bytes + state.alloc_u32.bytes + state.alloc_hc.bytes
    }

    /// It fills its window at once, whatever room the output has.
    fn keeps_steps_short(&self) -> bool {
        false
    }
}

fn fault(code: BrotliDecoderErrorCode) -> Fault {
    match code {
        // The one invalid size of a window is the mark of a large one.
        BrotliDecoderErrorCode::BROTLI_DECODER_ERROR_FORMAT_WINDOW_BITS => {
            Fault::Unsupported("has a large window, which is not taken: compress it with a window of at most 24 bits")
        }
        // Such as ERROR_FORMAT_PADDING_1, without what the names have in common.
        code => Fault::Damaged(format!("{code:?}").replace("BROTLI_DECODER_ERROR_", "").into()),
    }
}
